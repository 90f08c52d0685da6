//! What must hold of any input. The fuzz targets run it for long, the tests of the core for a moment: so it is
//! compiled with the core, and follows it.

use proptest::prelude::*;

mod dicom_json;
#[cfg(feature = "server")]
mod gateway;
mod lru;
mod packed;
mod parse;
mod record;
mod tiledb;
mod torch_file;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_hold(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for hold in [
            dicom_json::hold,
            lru::hold,
            packed::hold,
            parse::hold,
            record::hold,
            tiledb::hold,
            torch_file::hold,
        ] {
            hold(&bytes);
        }
    }
}

/// Texts that are nearly what a request has in some place.
#[cfg(feature = "server")]
fn texts() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        "[0-9,]{0,8}",
        "[ -~]{0,12}",
        ".{0,6}",
        "(bytes=)?[0-9]{0,20}-[0-9]{0,20}",
        "(studies|series|instances|frames|bulkdata|metadata|dicomweb|wado)/?",
        "[*a-z]{1,9}/[*a-z-]{1,9}",
        "(; ?(type|transfer-syntax|q)=\"?[a-z0-9*./]{0,12}\"?)?",
        "multipart/related",
        "%[0-9a-fA-F]{0,2}",
    ];
    prop::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat())
}

#[cfg(feature = "server")]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_text_holds_in_every_place(text in texts(), number in any::<u64>()) {
        gateway::hold(&text, number);
    }
}
