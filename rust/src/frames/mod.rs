//! Frame tables: what they hold, how they are packed and stored, which come first, and how memory keeps them.

pub mod attributes;
pub mod index;
pub mod memory;
pub mod notes;
pub mod packed;
pub mod priority;
pub mod record;
pub mod row;
pub mod table;
