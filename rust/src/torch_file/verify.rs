//! The check of one file, in the order of the work: archive, pickle, bounds, payloads.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::archive::{Archive, Container, Legacy};
use super::verdict::{Checked, Checks, Finding, Report, State};
use super::{contents, globals, payload, pickle, plausibility};
use crate::base::window::Buffer;

/// Checks one file. `buffer` is scratch memory, reused from file to file.
pub fn verify_file(path: &Path, checks: Checks, buffer: &mut Buffer) -> Report {
    let mut report = Report::default();
    report.finding = verify_into(path, checks, buffer, &mut report).unwrap_or_else(Some);
    if let Some(finding) = &mut report.finding {
        let size = report.size;
        // An offset that is itself damaged may point past the end.
        finding.offset = finding.offset.filter(|&at| at <= size);
    }
    report
}

fn verify_into(
    path: &Path,
    checks: Checks,
    buffer: &mut Buffer,
    report: &mut Report,
) -> Checked<Option<Finding>> {
    // Without this, opening a pipe that has no writer waits for ever.
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
    let archive = match Container::read(file, size)? {
        Container::Zip(archive) => archive,
        Container::Legacy(legacy) => return verify_legacy(&legacy, report).map(Some),
    };
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
    describe(&graph, report);

    let mut suspicious = None;
    let mut digests = Vec::new();
    if (checks.crc && has_crc) || checks.content || checks.digest {
        for record in &archive.records {
            let watches =
                if checks.content { plausibility::watches(&graph, &record.name) } else { Vec::new() };
            let payload = payload::read_record(file, record, buffer, watches, checks.digest)?;
            if let (true, Some(crc)) = (has_crc, payload.crc) {
                record.check_crc(Some(crc))?;
            }
            if let (Some(reason), None) = (payload.implausible, &suspicious) {
                suspicious =
                    Some(Finding::of(State::SuspiciousContent, &record.name, record.payload, reason));
            }
            digests.push((record.name.as_str(), payload.digest));
        }
        if checks.digest {
            report.digest = contents::digest(&graph, &digests);
        }
    }
    Ok(verdict_on_intact(&archive, report, suspicious, has_crc))
}

/// Tells the report what the pickle would build, and what it names.
fn describe(graph: &pickle::Graph, report: &mut Report) {
    report.refused_globals = graph.refused_globals();
    report.refused_opcodes = graph.refused_opcodes.iter().map(|&name| name.to_owned()).collect();
    report.tensors = contents::summaries(graph);
}

fn verify_legacy(legacy: &Legacy, report: &mut Report) -> Checked<Finding> {
    contents::check_reach(&legacy.graph, |key| legacy.place(key))?;
    let record = |(key, bytes, _): &(String, u64, u64)| (format!("data/{key}"), *bytes, 0);
    report.records = legacy.storages.iter().map(record).collect();
    describe(&legacy.graph, report);
    let detail = "written by torch < 1.6, or without zip serialization: it has no checksums, save it again";
    Ok(dangerous(&report.refused_globals).unwrap_or_else(|| Finding::new(State::LegacyFormat, detail)))
}

/// The finding on globals that no file of tensors needs.
fn dangerous(refused: &[String]) -> Option<Finding> {
    let names: Vec<&str> =
        refused.iter().map(String::as_str).filter(|name| globals::is_dangerous(name)).collect();
    let detail = format!("loading would import and may run {}", first_of(&names));
    let finding = Finding::new(State::UnsafeGlobals, detail);
    (!names.is_empty()).then(|| Finding { record: Some("data.pkl".into()), ..finding })
}

/// The verdict on a file without damage: its most important peculiarity.
fn verdict_on_intact(
    archive: &Archive,
    report: &Report,
    suspicious: Option<Finding>,
    has_crc: bool,
) -> Option<Finding> {
    if let Some(finding) = dangerous(&report.refused_globals) {
        return Some(finding);
    }
    if let Some(record) = archive.records.iter().find(|record| record.compressed()) {
        let detail = "the record is compressed: torch.load(mmap=True) reads wrong numbers from it, save the file again";
        return Some(Finding::of(State::CompressedStorage, &record.name, record.payload, detail));
    }
    let (names, opcodes) = (&report.refused_globals, &report.refused_opcodes);
    if !names.is_empty() || !opcodes.is_empty() {
        let opcodes: Vec<String> = opcodes.iter().map(|name| format!("opcode {name}")).collect();
        let reasons: Vec<&str> = opcodes.iter().chain(names).map(String::as_str).collect();
        let detail = format!(
            "torch.load(weights_only=True) refuses {}: MONAI >= 1.5.1 would delete the file",
            first_of(&reasons)
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

/// The first of the names, as a hostile file has room for a hundred thousand.
fn first_of(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<&str> = names.iter().copied().take(SHOWN).collect();
    let more = names.len() - shown.len();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}
