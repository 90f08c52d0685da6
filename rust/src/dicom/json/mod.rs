//! The attributes of a data set as DICOM JSON (PS3.18 F): a file's header goes through one walk into text, never
//! through a tree, so that a slide with an Item for each of its frames takes no memory of its own.
//!
//! [`walk`] reads the elements, [`writer`] puts them in order, [`values`] writes each by its [`vr`], texts by the
//! [`charset`] of their data set.

pub mod charset;
pub mod options;
mod output;
#[cfg(test)]
mod tests;
mod values;
pub mod vr;
mod walk;
mod writer;

use super::inflate;
use super::part10::{self, Container};
use crate::base::error::Result;
use crate::base::source::Source;
use crate::base::window::{Buffer, Window};
use crate::frames::notes::Notes;
use writer::Writer;

pub use options::{BulkData, Options, Sink};

/// Returns a file's attributes as one JSON object. `buffer` is scratch memory, reused from file to file.
///
/// # Errors
/// The kinds of [`super::read_table`] that are not about pixels; `limit_exceeded`; `misplaced_element` for an
/// attribute that stands twice with different values, or behind those that it says how to read.
pub fn write(source: &dyn Source, options: &Options<'_>, buffer: &mut Buffer) -> Result<Vec<u8>> {
    checked(source, |source| read(source, options, None, buffer))
}

/// Passes a file's attributes to `sink` as one JSON object. Before the first piece of a long one, the whole header
/// has been walked: what is malformed is refused before `sink` gets anything.
///
/// # Errors
/// As [`write`], and what `sink` returns.
pub fn stream(source: &dyn Source, options: &Options<'_>, buffer: &mut Buffer, sink: Sink<'_>) -> Result<()> {
    checked(source, |source| read(source, options, Some(sink), buffer)).map(drop)
}

/// A file that changes meanwhile is neither malformed nor is what was read of it one state.
fn checked<T>(source: &dyn Source, read: impl FnOnce(&dyn Source) -> Result<T>) -> Result<T> {
    let read = read(source);
    if read.as_ref().err().is_none_or(|error| !error.kind.is_environment()) {
        source.check_unchanged()?;
    }
    read
}

fn read(
    source: &dyn Source,
    options: &Options<'_>,
    sink: Option<Sink<'_>>,
    buffer: &mut Buffer,
) -> Result<Vec<u8>> {
    let mut window = Window::new(source, buffer);
    let container = part10::open(&mut window, &mut Notes::default())?;
    if part10::is_deflated(&container.transfer_syntax_uid) && container.dataset < source.size() {
        let inflated = inflate::inflate(source, container.dataset)?;
        let mut buffer = Buffer::default();
        return read_dataset(&mut Window::new(&inflated, &mut buffer), &container, 0, options, sink);
    }
    read_dataset(&mut window, &container, container.dataset, options, sink)
}

fn read_dataset(
    window: &mut Window<'_>,
    container: &Container,
    start: u64,
    options: &Options<'_>,
    sink: Option<Sink<'_>>,
) -> Result<Vec<u8>> {
    let mut writer = Writer::new(options, start, container.encoding, container.transfer_syntax_uid, sink);
    walk::walk(window, start, container.encoding, &mut writer)?;
    writer.finish()
}
