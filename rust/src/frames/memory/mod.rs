//! Tier 1: frame tables kept in memory within a budget of bytes.
//!
//! [`cache`] is the cache of a process: the [`lru`] behind a mutex that survives a fork. Its entries are
//! [`cached`] tables: a key, the table's attributes, and its packed layout. [`hot_set`] is what outlives
//! the process. [`replay`] counts the hits that a
//! recorded trace would have had.

pub mod cache;
pub mod cached;
pub mod hot_set;
pub mod lru;
pub mod replay;
