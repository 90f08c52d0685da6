//! The one error type of the core: kind, place and cause of a refusal.

use std::fmt;

use crate::base::closed_list::closed_list;

/// Result of every fallible function of the core.
pub type Result<T> = std::result::Result<T, Error>;

closed_list! {
    /// Why the core refuses an input; the names are stable.
    pub enum ErrorKind {
        /// Zero bytes.
        Empty = "empty",
        /// Neither a DICOM Part 10 file nor a bare data set.
        NotDicom = "not_dicom",
        /// The file ends inside the File Meta Information (PS3.10 7.1).
        TruncatedMeta = "truncated_meta",
        /// The file ends inside an element header or an unterminated sequence.
        TruncatedHeader = "truncated_header",
        /// A declared length reaches past the end of the file or of the enclosing item.
        ValuePastEnd = "value_past_end",
        /// Something else than an Item or a delimiter stands where an Item must (PS3.5 7.5).
        BadItemTag = "bad_item_tag",
        /// Delimiters that do not fit their sequences: nested elements would become the image's own.
        BadNesting = "bad_nesting",
        /// An element stands twice, behind Pixel Data, or where the order of tags forbids it (PS3.5 7.1).
        MisplacedElement = "misplaced_element",
        /// An image that ends before its Pixel Data.
        MissingPixelData = "missing_pixel_data",
        /// Number of Frames is no number, and nothing in the file proves a count.
        BadNumberOfFrames = "bad_number_of_frames",
        /// Two equally good ways to cut the pixels into frames.
        AmbiguousFrameSize = "ambiguous_frame_size",
        /// Bytes that cannot be the frame that they stand for: empty, or without their codec's beginning.
        NotAFrame = "not_a_frame",
        /// Offset tables, or a table and Number of Frames, that contradict each other.
        ContradictoryTables = "contradictory_tables",
        /// Sequences nested deeper than the cap.
        NestingTooDeep = "nesting_too_deep",
        /// The deflated data set does not inflate (PS3.5 A.5).
        BadDeflate = "bad_deflate",
        /// Rows, Columns or Bits Allocated is absent or zero beside native pixels.
        MissingImageAttributes = "missing_image_attributes",
        /// Encapsulated Pixel Data does not begin with an Item (PS3.5 A.4).
        NoBotItem = "no_bot_item",
        /// The Basic Offset Table reaches past the end of the file.
        TruncatedBot = "truncated_bot",
        /// A fragment of undefined length (PS3.5 A.4 demands explicit lengths).
        UndefinedFragmentLength = "undefined_fragment_length",
        /// More fragments than frames and nothing that says which belongs to which.
        AmbiguousFragments = "ambiguous_fragments",
        /// Fewer fragments than frames.
        FewerFragmentsThanFrames = "fewer_fragments_than_frames",
        /// Number of Frames far beyond what the Pixel Data can hold.
        FramesExceedPixelData = "frames_exceed_pixel_data",
        /// The operating system or a reader refused or failed.
        IoError = "io_error",
        /// A cap on work or memory was reached.
        LimitExceeded = "limit_exceeded",
        /// Size or modification time changed while the file was read, or since it was indexed.
        ChangedDuringRead = "changed_during_read",
        /// A packed table that does not decode (version, checksum, length or bounds).
        BadTable = "bad_table",
        /// A frame that lies, wholly or in part, past the end of a truncated file.
        TruncatedFrame = "truncated_frame",
        /// One range was requested of a frame that lies in several fragments.
        FragmentedFrame = "fragmented_frame",
        /// A TileDB tile file whose framing, filters or lengths contradict each other.
        BadTile = "bad_tile",
        /// An argument outside its domain.
        InvalidArgument = "invalid_argument",
    }
}

impl ErrorKind {
    /// Whether the environment failed, not the content: another try may succeed.
    pub const fn is_environment(self) -> bool {
        matches!(self, Self::IoError | Self::ChangedDuringRead)
    }
}

/// A refusal: its kind, its byte offset where there is one, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}{}: {detail}", Place(.offset))]
pub struct Error {
    /// Class of the refusal.
    pub kind: ErrorKind,
    /// Absolute byte offset (in the inflated data set for deflated files).
    pub offset: Option<u64>,
    /// What was found and what would be right. Never holds values of patient attributes.
    pub detail: String,
    /// The operating system's error number, for [`ErrorKind::IoError`].
    pub errno: Option<i32>,
}

impl Error {
    /// A refusal without a place.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, offset: None, detail: detail.into(), errno: None }
    }

    /// A refusal at a byte offset.
    pub fn at(kind: ErrorKind, offset: u64, detail: impl Into<String>) -> Self {
        Self { kind, offset: Some(offset), detail: detail.into(), errno: None }
    }

    /// A refusal for a file that is not there, for whoever asks here.
    pub fn not_there(detail: impl Into<String>) -> Self {
        Self { errno: Some(rustix::io::Errno::NOENT.raw_os_error()), ..Self::new(ErrorKind::IoError, detail) }
    }

    /// Whether a file is not there: it was deleted, or its folder was. Anything else that keeps it from being read
    /// says nothing of the file.
    pub fn is_gone(&self) -> bool {
        use rustix::io::Errno;
        let gone = [Errno::NOENT, Errno::NOTDIR].map(|errno| Some(errno.raw_os_error()));
        self.kind == ErrorKind::IoError && gone.contains(&self.errno)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self {
            kind: ErrorKind::IoError,
            offset: None,
            errno: error.raw_os_error(),
            detail: message_of(&error),
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        std::io::Error::from(errno).into()
    }
}

/// The operating system's message, without the number that [`Error::errno`] holds.
fn message_of(error: &std::io::Error) -> String {
    let message = error.to_string();
    message.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Prints ` at byte N` or nothing.
struct Place<'a>(&'a Option<u64>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |offset| write!(f, " at byte {offset}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_kind_place_and_detail() {
        let error = Error::at(ErrorKind::NoBotItem, 348, "found (FFFE,E0DD)");
        assert_eq!(error.to_string(), "no_bot_item at byte 348: found (FFFE,E0DD)");
        assert_eq!(Error::new(ErrorKind::Empty, "0 bytes").to_string(), "empty: 0 bytes");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ErrorKind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorKind::ALL.len());
    }
}
