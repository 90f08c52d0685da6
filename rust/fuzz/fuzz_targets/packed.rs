//! Any bytes as a packed table with a right checksum: refused, or decoded and looked up with the same result.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../properties/packed.rs"]
mod properties;

fuzz_target!(|bytes: &[u8]| properties::hold(bytes));
