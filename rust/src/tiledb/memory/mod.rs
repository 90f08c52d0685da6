//! What a process keeps between reads: decoded chunks within a budget, and open descriptors.

pub mod cache;
pub mod handles;
pub mod slabs;
