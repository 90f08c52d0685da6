//! See `../properties/lru.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../properties/lru.rs"]
mod properties;

fuzz_target!(|bytes: &[u8]| properties::hold(bytes));
