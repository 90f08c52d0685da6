//! What is kept between reads: decoded chunks within a budget, of a process or a node, and open descriptors.

pub mod cache;
pub mod handles;
pub mod key;
pub mod node;
pub mod slabs;
