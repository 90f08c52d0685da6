//! See `../properties/dicom_json.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../properties/dicom_json.rs"]
mod properties;

fuzz_target!(|bytes: &[u8]| properties::hold(bytes));
