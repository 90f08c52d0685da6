//! The attributes of a data set as DICOM JSON (PS3.18 F): a file's header goes through one walk into text, never
//! through a tree, so that a slide with an Item for each of its frames takes no memory of its own.
//!
//! [`walk`] reads the elements, [`writer`] puts them in order, [`values`] writes each by its [`vr`], texts by the
//! [`charset`] of their data set.

mod bulk;
pub mod charset;
pub mod options;
mod output;
#[cfg(test)]
mod tests;
mod values;
pub mod vr;
pub(super) mod walk;
mod writer;

use super::inflate;
use super::part10::{self, Container};
use crate::base::error::Result;
use crate::base::source::Source;
use crate::base::window::{Buffer, Window};
use crate::dicom::element::Encoding;
use crate::frames::attributes::Uid;
use crate::frames::notes::Notes;
use writer::Writer;

pub use bulk::Bulk;
pub use options::{BulkData, Options, Sink};

/// Returns a file's attributes as one JSON object. `buffer` is scratch memory, reused from file to file.
///
/// # Errors
/// The kinds of [`super::read_table`] that are not about pixels; `limit_exceeded`; `misplaced_element` for an
/// attribute that stands twice with different values, or behind those that it says how to read.
pub fn write(source: &dyn Source, options: &Options<'_>, buffer: &mut Buffer) -> Result<Vec<u8>> {
    with_data_set(source, buffer, |window, data_set| data_set.write(window, options, None))
}

/// Passes a file's attributes to `sink` as one JSON object. Before the first piece of a long one, the whole header
/// has been walked: what is malformed is refused before `sink` gets anything.
///
/// # Errors
/// As [`write`], and what `sink` returns.
pub fn stream(source: &dyn Source, options: &Options<'_>, buffer: &mut Buffer, sink: Sink<'_>) -> Result<()> {
    with_data_set(source, buffer, |window, data_set| data_set.write(window, options, Some(sink))).map(drop)
}

/// Finds the value that a `BulkDataURI` names: `place` is the part of the URI behind [`BulkData::uri`], such as
/// `00420011` or `52009230/3/00420011`. `None` where there is none, or one of a VR that has no URI. A value that is
/// sent in another form than that of the file is refused beyond `most_bytes`.
///
/// # Errors
/// As [`write`], for what stands before the place; `limit_exceeded`; `value_past_end` for a value that is cut.
pub fn find_bulk(
    source: &dyn Source,
    place: &str,
    most_bytes: usize,
    buffer: &mut Buffer,
) -> Result<Option<Bulk>> {
    with_data_set(source, buffer, |window, DataSet { start, encoding, is_inflated, .. }| {
        bulk::find(window, start, encoding, is_inflated, place, most_bytes)
    })
}

/// Where a data set is, in a file or in what its file inflates to.
pub(super) struct DataSet {
    pub(super) start: u64,
    pub(super) encoding: Encoding,
    transfer_syntax_uid: Uid,
    is_inflated: bool,
}

impl DataSet {
    fn write(
        self,
        window: &mut Window<'_>,
        options: &Options<'_>,
        sink: Option<Sink<'_>>,
    ) -> Result<Vec<u8>> {
        let Self { start, encoding, transfer_syntax_uid, .. } = self;
        let mut writer = Writer::new(options, start, encoding, transfer_syntax_uid, sink);
        walk::walk(window, start, encoding, &mut writer)?;
        writer.finish()
    }
}

pub(super) fn with_data_set<T>(
    source: &dyn Source,
    buffer: &mut Buffer,
    read: impl FnOnce(&mut Window<'_>, DataSet) -> Result<T>,
) -> Result<T> {
    let result = open(source, buffer, read);
    // A file that changes meanwhile is not malformed, nor is what was read of it one state.
    if result.as_ref().err().is_none_or(|error| !error.kind.is_environment()) {
        source.check_unchanged()?;
    }
    result
}

fn open<T>(
    source: &dyn Source,
    buffer: &mut Buffer,
    read: impl FnOnce(&mut Window<'_>, DataSet) -> Result<T>,
) -> Result<T> {
    let mut window = Window::new(source, buffer);
    let container = part10::open(&mut window, &mut Notes::default())?;
    let Container { dataset: start, encoding, transfer_syntax_uid, .. } = container;
    let data_set = DataSet { start, encoding, transfer_syntax_uid, is_inflated: false };
    if part10::is_deflated(&transfer_syntax_uid) && start < source.size() {
        let inflated = inflate::inflate(source, start)?;
        let mut buffer = Buffer::default();
        let data_set = DataSet { start: 0, is_inflated: true, ..data_set };
        return read(&mut Window::new(&inflated, &mut buffer), data_set);
    }
    read(&mut window, data_set)
}
