//! See `../properties/torch_file.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../properties/torch_file.rs"]
mod properties;

fuzz_target!(|bytes: &[u8]| properties::hold(bytes));
