//! The DICOMweb gateway: WADO-RS and QIDO-RS (PS3.18 8 to 10) over the tables that memory holds.
//!
//! A worker is one thread with a runtime of its own that accepts connections on the shared address. It answers
//! from memory (tier 1) and from the files (tier 3) by itself; what only the index knows (tier 2, searches) it
//! asks of Python threads by a bounded queue ([`jobs`]). Python is never called from here.
//!
//! ```text
//!   server ── http ── service ─┬─ routes       what is asked
//!   workers   1.1, 2           ├─ access       who asks
//!                              ├─ files        which file holds a UID; open files and objects
//!                              ├─ jobs         what only the index knows
//!                              ├─ wado         frames, instances, headers, in the form that is taken
//!                              └─ telemetry    the access log, counters
//! ```

pub mod access;
pub mod files;
pub mod http;
pub mod jobs;
pub mod routes;
pub mod server;
pub mod service;
pub mod telemetry;
pub mod wado;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::properties::hold;

    /// Texts that are nearly what a request has in some place.
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_text_holds_in_every_place(text in texts(), number in any::<u64>()) {
            hold(&text, number);
        }
    }
}
