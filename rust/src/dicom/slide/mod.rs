//! Where the tiles of a slide lie (PS3.3 C.8.12): [`header`] reads what one instance says of it, [`map`] makes of the
//! instances of a level the map from a tile's column and row to a frame, [`stored`] writes a header as the bytes that
//! are kept, so that a second look reads none.

mod header;
mod map;
mod stored;
#[cfg(test)]
mod tests;

pub use header::{Position, SlideHeader, read};
pub use map::TileMap;
pub use stored::{decode, encode};
