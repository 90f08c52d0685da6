//! Any bytes as a torch file, and as the pickle in one: a verdict, which does not depend on what else is
//! checked.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use _core::base::window::Buffer;
use _core::torch_file::{Checks, Report, State, verify_file};
use rustix::fs::{MemfdFlags, memfd_create};

const ROOT: &str = "archive";
const EVERYTHING: Checks = Checks { crc: true, content: true, digest: true };

thread_local! {
    static MEMORY: RefCell<File> =
        RefCell::new(memfd_create("torch_file", MemfdFlags::CLOEXEC).expect("memory").into());
}

/// Holds for any bytes.
pub fn hold(bytes: &[u8]) {
    let Some((&mode, content)) = bytes.split_first() else { return };
    match mode {
        0 => check(content, true),
        _ => check(&archive(content), false),
    }
}

/// `may_be_foreign`: whether the bytes may be a file of another program, on which there is no verdict.
fn check(content: &[u8], may_be_foreign: bool) {
    let full = verify(content, EVERYTHING);
    let quick = verify(content, Checks::default());
    for report in [&full, &quick] {
        assert!(report.state() != State::IoError, "{:?}", report.finding);
        assert!(may_be_foreign || report.state() != State::Unknown, "{:?}", report.finding);
        let offset = report.finding.as_ref().and_then(|finding| finding.offset).unwrap_or(0);
        assert!(offset <= content.len() as u64, "an offset past the end of the file");
        for tensor in &report.tensors {
            assert!(report.records.iter().any(|(name, _, _)| *name == tensor.record), "{tensor:?}");
        }
    }
    let intact = [State::Ok, State::OkNoCrc, State::OkTrailing];
    if intact.contains(&full.state()) {
        assert_eq!(full.state(), quick.state(), "the quick check differs from the full one");
        assert!(full.refused_globals.is_empty());
        assert!(full.tensors.iter().all(|tensor| tensor.shape.iter().all(|&length| length >= 0)));
    }
    if quick.state() == State::BadStructure {
        assert!(!intact.contains(&full.state()));
    }
}

fn verify(content: &[u8], checks: Checks) -> Report {
    MEMORY.with_borrow_mut(|file| {
        file.set_len(0).expect("memory");
        file.rewind().expect("memory");
        file.write_all(content).expect("memory");
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        verify_file(&path, checks, &mut Buffer::default())
    })
}

/// A torch file without CRCs around a pickle: mutations then reach the pickle machine.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let records: [(&str, &[u8]); 4] =
        [("data.pkl", pickle), ("version", b"3\n"), ("data/0", &[7; 64]), ("data/1", &[9; 8])];
    let (mut file, mut directory) = (Vec::<u8>::new(), Vec::<u8>::new());
    for (name, content) in records {
        let name = format!("{ROOT}/{name}");
        let offset = file.len() as u32;
        let length = (content.len() as u32).to_le_bytes();
        // From "version needed" to the length of the extra field; CRC, time and flags are zero.
        let mut fields = vec![0; 14];
        fields.extend(length.iter().chain(&length).chain(&(name.len() as u16).to_le_bytes()).chain(&[0, 0]));
        file.extend(b"PK\x03\x04".iter().chain(&fields).chain(name.as_bytes()).chain(content));
        directory.extend(b"PK\x01\x02\0\0".iter().chain(&fields).chain(&[0; 10]));
        directory.extend(offset.to_le_bytes().iter().chain(name.as_bytes()));
    }
    let count = (records.len() as u16).to_le_bytes();
    let (start, length) = (file.len() as u32, directory.len() as u32);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0".iter().chain(&count).chain(&count));
    file.extend(length.to_le_bytes().iter().chain(&start.to_le_bytes()).chain(&[0, 0]));
    file
}
