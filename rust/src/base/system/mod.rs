//! What differs between machines: instruction sets of the processor, calls of the kernel.

pub mod cpu;
pub mod kernel;
