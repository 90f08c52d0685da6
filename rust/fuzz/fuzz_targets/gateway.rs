//! Any text as a path, a list of frames, an Accept, a Range or an entity tag of a request to the gateway.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../properties/gateway.rs"]
mod properties;

fuzz_target!(|input: (&str, u64)| properties::hold(input.0, input.1));
