//! Any bytes as a record of a table with a right checksum: refused, or decoded and encoded to the same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../properties/record.rs"]
mod properties;

fuzz_target!(|bytes: &[u8]| properties::hold(bytes));
