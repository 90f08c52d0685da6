//! Frame tables: what they hold, how they are packed, stored, ranked and kept in memory.

pub mod attributes;
pub mod cache;
pub mod cached;
pub mod index;
pub mod lru;
pub mod notes;
pub mod packed;
pub mod priority;
pub mod record;
pub mod replay;
pub mod row;
pub mod table;
