//! Cells on their way to the output: copied, converted, turned.

pub mod convert;
mod rows;
pub mod scatter;
pub mod sink;
