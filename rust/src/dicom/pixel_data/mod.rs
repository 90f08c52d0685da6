//! What stands in, before and behind the Pixel Data element (PS3.5 8, A.4).

pub mod align;
pub mod before;
pub mod behind;
pub mod codec;
pub mod encapsulated;
pub mod native;
