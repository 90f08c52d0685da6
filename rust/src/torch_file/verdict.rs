//! The verdict on one file: a state, the evidence for it, and what the check read on the way.

use crate::base::closed_list::closed_list;

closed_list! {
    /// The state of a file, from best to worst.
    pub enum State {
        /// Every requested check passed.
        Ok = "ok",
        /// The structure is right; the writer stored no CRCs, so damage of payloads cannot be seen.
        OkNoCrc = "ok_no_crc",
        /// Right, but bytes follow the archive, which every reader ignores.
        OkTrailing = "ok_trailing",
        /// Intact, but a record is compressed: `torch.load(mmap=True)` reads it as wrong numbers.
        CompressedStorage = "compressed_storage",
        /// Intact, but `torch.load(weights_only=True)` refuses it, so MONAI >= 1.5.1 would delete it: arrays,
        /// metadata, classes of a user or of another package, other pickle protocols.
        NotWeightsOnly = "not_weights_only",
        /// Intact, but its numbers are implausible (all equal, NaN, infinite).
        SuspiciousContent = "suspicious_content",
        /// The pickle names what runs, opens or imports something: the standard library, known runners.
        UnsafeGlobals = "unsafe_globals",
        /// Written by torch < 1.6, without checksums: complete, and not a zip archive.
        LegacyFormat = "legacy_format",
        /// The file ends before its archive does.
        Truncated = "truncated",
        /// The archive, its pickle or a tensor's bounds contradict themselves.
        BadStructure = "bad_structure",
        /// A record's bytes do not match their CRC-32.
        BadCrc = "bad_crc",
        /// The operating system failed to read the file, which may be intact.
        IoError = "io_error",
        /// No verdict: a file of another program, one that changed while it was read, or that exceeds a limit.
        Unknown = "unknown",
    }
}

/// Why a file is not [`State::Ok`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The verdict.
    pub state: State,
    /// Record name without the archive's root, or `header`, `directory`, `end`.
    pub record: Option<String>,
    /// Absolute byte offset of the evidence, within the file.
    pub offset: Option<u64>,
    /// What was found, and what would be right.
    pub detail: String,
}

impl Finding {
    /// A finding without a place.
    pub(super) fn new(state: State, detail: impl Into<String>) -> Self {
        Self { state, record: None, offset: None, detail: detail.into() }
    }

    /// A finding at a byte offset, about a record.
    pub(super) fn of(state: State, record: &str, offset: u64, detail: impl Into<String>) -> Self {
        Self { state, record: Some(record.to_owned()), offset: Some(offset), detail: detail.into() }
    }

    /// A finding of [`State::BadStructure`].
    pub(super) fn damage(record: &str, offset: u64, detail: impl Into<String>) -> Self {
        Self::of(State::BadStructure, record, offset, detail)
    }
}

impl From<std::io::Error> for Finding {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return Self::new(State::Unknown, "the file shrank while it was read");
        }
        Self::new(State::IoError, error.to_string())
    }
}

/// The result of a step of a check: what it read, or the finding that ends the check.
pub(super) type Checked<T> = Result<T, Finding>;

/// What to check beyond structure, opcodes and bounds, which are always checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// CRC-32 of every record (of `data.pkl` it is always checked).
    pub crc: bool,
    /// Whether floating-point tensors are constant, NaN or infinite.
    pub content: bool,
    /// A digest of the contents that does not depend on key order or on the archive's bytes.
    pub digest: bool,
}

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSummary {
    /// Keys and indices from the root, joined by `.`; empty for the root itself.
    pub path: String,
    /// Element type as NumPy names it, such as `float32`.
    pub dtype: String,
    /// Elements per axis.
    pub shape: Vec<i64>,
    /// Record that holds the elements, such as `data/0`.
    pub record: String,
}

/// The result of a check of one file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The verdict and its evidence; `None` for [`State::Ok`].
    pub finding: Option<Finding>,
    /// Size in bytes; 0 where the file could not be opened.
    pub size: u64,
    /// Modification time in nanoseconds since 1970; 0 where the file could not be opened.
    pub mtime_ns: i64,
    /// Time of the inode's last change, likewise; no program can set it back.
    pub ctime_ns: i64,
    /// Name, size in bytes and recorded CRC-32 of every record, as far as the structure was read.
    pub records: Vec<(String, u64, u32)>,
    /// Globals of the pickle that `weights_only=True` refuses.
    pub refused_globals: Vec<String>,
    /// Opcodes of the pickle, or their families, that `weights_only=True` refuses.
    pub refused_opcodes: Vec<String>,
    /// The tensors that are reachable from the root.
    pub tensors: Vec<TensorSummary>,
    /// Hexadecimal digest of the contents, when requested and possible.
    pub digest: Option<String>,
}

impl Report {
    /// The verdict.
    pub fn state(&self) -> State {
        self.finding.as_ref().map_or(State::Ok, |finding| finding.state)
    }
}
