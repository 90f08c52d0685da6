//! How the codecs' streams begin: what a fragment must look like to be the first of a frame.

/// Whether these first bytes of a payload begin an image: JPEG SOI, JPEG 2000 SOC, JPEG XL codestream, or the
/// signature box of a JP2 or JPEG XL file.
pub fn begins_image(payload: &[u8]) -> bool {
    matches!(payload, [0xFF, 0xD8 | 0x4F | 0x0A, ..])
        || payload.starts_with(b"\0\0\0\x0CjP  ")
        || payload.starts_with(b"\0\0\0\x0CJXL ")
}

/// Whether a payload begins as an RLE frame does: 1 to 15 segments, the first at byte 64 (PS3.5 G.5).
pub fn begins_rle(payload: &[u8]) -> bool {
    matches!(payload, [1..=15, 0, 0, 0, 64, 0, 0, 0, ..])
}

/// Whether these 64 bytes are the header of an RLE frame (PS3.5 G.5): 1 to 15 segments, the first at 64, the
/// others behind it in order, unused entries 0.
pub fn is_rle_header(header: &[u8; 64]) -> bool {
    let (words, _) = header.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    let Some(count @ 1..=15) = words.next() else { return false };
    let mut previous = 63;
    words.zip(0..).all(|(offset, segment)| {
        let fits = match segment {
            0 => offset == 64,
            _ if segment < count => offset > previous,
            _ => offset == 0,
        };
        previous = offset;
        fits
    })
}
