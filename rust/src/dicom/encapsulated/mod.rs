//! Encapsulated pixel data (PS3.5 A.4): offset tables, fragments, and which fragments make a frame.

pub mod fragments;
pub mod grouping;
pub mod offset_table;
pub mod tiff;
pub mod walk;
