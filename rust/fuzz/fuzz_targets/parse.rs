//! See `../properties/parse.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../properties/parse.rs"]
mod properties;

fuzz_target!(|bytes: &[u8]| properties::hold(bytes));
