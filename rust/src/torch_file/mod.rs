//! A torch zip file (`.pt`) checked without torch and without unpickling: structure, pickle opcodes,
//! tensor bounds, and the CRC-32 of every record.
//!
//! `torch.save` writes a ZIP archive of STORED records. `torch.load` checks no CRC (pytorch#126952), and
//! with `mmap=True` it does not even compare a record's size with its tensor's, so a damaged file loads as
//! wrong numbers. [`verify_file`] names the damage; [`Sweep`] does it for a folder with several threads.
//!
//! A verdict is a [`State`], never an error: that a file could not be *read* ([`State::IoError`],
//! [`State::Unknown`]) must stay apart from evidence that it is *bad*, because evidence leads to
//! quarantine.

mod archive;
mod contents;
mod globals;
mod parallel_verify;
mod payload;
mod pickle;

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use archive::Archive;
pub use contents::TensorSummary;
pub use globals::ALLOWED_GLOBALS;
pub use parallel_verify::{Next as SweepNext, Sweep};
pub use payload::Buffer;

/// Declares [`State`] together with the stable names that rows and JSON carry.
macro_rules! states {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// What is known about one file, from best to worst evidence.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum State { $($(#[$doc])* $variant),+ }

        impl State {
            /// Every state, in declaration order.
            pub const ALL: &'static [State] = &[$(State::$variant),+];

            /// The stable `snake_case` name.
            pub const fn name(self) -> &'static str {
                match self { $(State::$variant => $name),+ }
            }
        }
    };
}

states! {
    /// Everything that was asked for was checked and is right.
    Ok = "ok",
    /// Right in structure; its writer stored no CRCs, so payload damage cannot be seen.
    OkNoCrc = "ok_no_crc",
    /// Right, with bytes after the archive that every reader ignores.
    OkTrailing = "ok_trailing",
    /// Intact, but a record is compressed: `torch.load(mmap=True)` reads it as wrong numbers.
    CompressedStorage = "compressed_storage",
    /// Intact, but `torch.load(weights_only=True)` refuses it, so MONAI >= 1.5.1 would delete it.
    NotWeightsOnly = "not_weights_only",
    /// Intact, but its numbers are implausible (all equal, NaN, infinite).
    SuspiciousContent = "suspicious_content",
    /// The pickle names callables that loading would run.
    UnsafeGlobals = "unsafe_globals",
    /// Written by torch < 1.6: not a zip archive.
    LegacyFormat = "legacy_format",
    /// The file ends before its archive does.
    Truncated = "truncated",
    /// The archive, its pickle or a tensor's bounds contradict themselves.
    BadStructure = "bad_structure",
    /// A record's bytes do not match their CRC-32.
    BadCrc = "bad_crc",
    /// The operating system refused or failed: says nothing about the file.
    IoError = "io_error",
    /// It could not be decided: changed while it was read, or over a cap.
    Unknown = "unknown",
}

/// Why a file is not plainly ok.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The verdict.
    pub state: State,
    /// Record name without the archive's root, or `header`, `directory`, `end`.
    pub record: Option<String>,
    /// Absolute byte offset of the evidence, within the file.
    pub offset: Option<u64>,
    /// What was found, and what would have been right.
    pub detail: String,
}

impl Finding {
    fn new(state: State, detail: impl Into<String>) -> Self {
        Self { state, record: None, offset: None, detail: detail.into() }
    }

    fn of(state: State, record: &str, offset: u64, detail: impl Into<String>) -> Self {
        Self { state, record: Some(record.to_owned()), offset: Some(offset), detail: detail.into() }
    }

    fn bad(record: &str, offset: u64, detail: impl Into<String>) -> Self {
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

type Checked<T> = Result<T, Finding>;

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

/// Everything learnt about one file.
#[derive(Clone, Debug)]
pub struct Report {
    /// The verdict and its evidence; `None` when the file is plainly ok.
    pub finding: Option<Finding>,
    /// Bytes, where the file could be opened.
    pub size: u64,
    /// Modification time in nanoseconds since 1970, where the file could be opened.
    pub mtime_ns: i64,
    /// The same of the inode's last change, which no program can set back.
    pub ctime_ns: i64,
    /// Name, size and recorded CRC-32 of every record, as far as the structure was read.
    pub records: Vec<(String, u64, u32)>,
    /// Globals of the pickle that `weights_only=True` refuses.
    pub refused_globals: Vec<String>,
    /// The tensors that are reachable from the root, with their key paths.
    pub tensors: Vec<TensorSummary>,
    /// Hexadecimal digest of the contents, when asked for and possible.
    pub digest: Option<String>,
}

impl Report {
    fn empty() -> Self {
        Self {
            finding: None,
            size: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            records: Vec::new(),
            refused_globals: Vec::new(),
            tensors: Vec::new(),
            digest: None,
        }
    }

    /// The verdict.
    pub fn state(&self) -> State {
        self.finding.as_ref().map_or(State::Ok, |finding| finding.state)
    }
}

/// Checks one file. `buffer` is scratch space, reused from file to file.
pub fn verify_file(path: &Path, checks: Checks, buffer: &mut Buffer) -> Report {
    let mut report = Report::empty();
    report.finding = verify_into(path, checks, buffer, &mut report).unwrap_or_else(Some);
    if let Some(finding) = &mut report.finding {
        let size = report.size;
        finding.offset = finding.offset.filter(|&at| at <= size); // not where a damaged offset points to
    }
    report
}

fn verify_into(
    path: &Path,
    checks: Checks,
    buffer: &mut Buffer,
    report: &mut Report,
) -> Checked<Option<Finding>> {
    // Opening a pipe that nobody writes to would wait for ever.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(Finding::new(State::Unknown, "not a regular file"));
    }
    report.size = before.len();
    report.mtime_ns = modified(&before);
    report.ctime_ns = nanoseconds(before.ctime(), before.ctime_nsec());
    let verdict = verify_open(&file, before.len(), checks, buffer, report);
    let after = file.metadata()?;
    if after.len() != before.len() || modified(&after) != modified(&before) {
        return Err(Finding::new(State::Unknown, "the file changed while it was read"));
    }
    verdict
}

fn modified(metadata: &Metadata) -> i64 {
    nanoseconds(metadata.mtime(), metadata.mtime_nsec())
}

fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

fn verify_open(
    file: &File,
    size: u64,
    checks: Checks,
    buffer: &mut Buffer,
    report: &mut Report,
) -> Checked<Option<Finding>> {
    let archive = Archive::read(file, size)?;
    report.records = archive.records.iter().map(|r| (r.name.clone(), r.size, r.crc)).collect();
    let has_crc = archive.has_crc();
    if has_crc && !checks.crc {
        archive.records.iter().try_for_each(|record| record.check_crc(None))?;
    }

    let pickled = archive.require("data.pkl")?;
    archive.require("version")?;
    let program = payload::read_whole(file, pickled, pickle::MAX_LENGTH)?;
    if has_crc {
        pickled.check_crc(Some(crc32fast::hash(&program)))?;
    }
    let graph = pickle::scan(&program).map_err(|mut finding| {
        finding.offset = finding.offset.map(|at| at.saturating_add(pickled.payload));
        finding
    })?;
    contents::check_bounds(&graph, &archive)?;
    report.refused_globals = graph.refused_globals();
    report.tensors = contents::summaries(&graph);

    let mut suspicious = None;
    let mut digests = Vec::new();
    if (checks.crc && has_crc) || checks.content || checks.digest {
        for record in &archive.records {
            let storage = if checks.content { graph.storage_of(&record.name) } else { None };
            let seen = payload::read_record(file, record, buffer, storage, checks.digest)?;
            if let (true, Some(crc)) = (has_crc, seen.crc) {
                record.check_crc(Some(crc))?;
            }
            if let (Some(complaint), None) = (seen.complaint, &suspicious) {
                suspicious =
                    Some(Finding::of(State::SuspiciousContent, &record.name, record.payload, complaint));
            }
            digests.push((record.name.as_str(), seen.digest));
        }
        if checks.digest {
            report.digest = contents::digest(&graph, &digests);
        }
    }
    Ok(best_of_intact(&archive, &graph, &report.refused_globals, suspicious, has_crc))
}

/// The verdict on a file without damage: the most important remark that there is to make.
fn best_of_intact(
    archive: &Archive,
    graph: &pickle::Graph,
    refused: &[String],
    suspicious: Option<Finding>,
    has_crc: bool,
) -> Option<Finding> {
    let unsafe_names: Vec<&str> =
        refused.iter().map(String::as_str).filter(|name| !globals::is_inert(name)).collect();
    if !unsafe_names.is_empty() {
        let detail = format!("loading would import and may run {}", some_of(&unsafe_names));
        return Some(Finding {
            record: Some("data.pkl".into()),
            ..Finding::new(State::UnsafeGlobals, detail)
        });
    }
    if let Some(record) = archive.records.iter().find(|record| record.compressed()) {
        let detail = "the record is compressed: torch.load(mmap=True) reads wrong numbers from it";
        return Some(Finding::of(State::CompressedStorage, &record.name, record.payload, detail));
    }
    if !refused.is_empty() || !graph.refused_opcodes.is_empty() {
        let opcodes: Vec<String> =
            graph.refused_opcodes.iter().map(|name| format!("opcode {name}")).collect();
        let reasons: Vec<&str> = opcodes.iter().chain(refused).map(String::as_str).collect();
        let detail = format!(
            "weights_only=True refuses {}: MONAI >= 1.5.1 would delete and recompute it",
            some_of(&reasons)
        );
        return Some(Finding {
            record: Some("data.pkl".into()),
            ..Finding::new(State::NotWeightsOnly, detail)
        });
    }
    if suspicious.is_some() {
        return suspicious;
    }
    if archive.trailing > 0 {
        let detail = format!("{} bytes follow the archive; readers ignore them", archive.trailing);
        return Some(Finding::new(State::OkTrailing, detail));
    }
    (!has_crc).then(|| {
        Finding::new(State::OkNoCrc, "written with compute_crc32=False: payload damage cannot be seen")
    })
}

/// The first of many names: a hostile file has room for a hundred thousand.
fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<&str> = names.iter().copied().take(SHOWN).collect();
    let more = names.len() - shown.len();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}
