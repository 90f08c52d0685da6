//! The floors of the benchmarks: the least that any reader has to do, without parsing.
//!
//! `floor files LIST THREADS`: open, one read of 8 KiB, close, for every path of a list.
//! `floor walk FILE START mmap|pread`: touch every Item header from byte START to the delimiter.
//! Prints the seconds of the loop and the number of files or items.

use std::error::Error;
use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const FIRST_READ: usize = 8 * 1024;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (seconds, count) = match *words.as_slice() {
        ["files", list, threads] => files(list, threads.parse()?)?,
        ["walk", file, start, "mmap"] => walk_mapped(file, start.parse()?)?,
        ["walk", file, start, "pread"] => walk_positional(file, start.parse()?)?,
        _ => return Err("floor files LIST THREADS | floor walk FILE START mmap|pread".into()),
    };
    println!("{seconds} {count}");
    Ok(())
}

/// A buffer whose bytes begin on a page.
#[repr(align(4096))]
struct Page([u8; FIRST_READ]);

fn files(list: &str, threads: usize) -> Outcome<(f64, usize)> {
    let paths = std::io::BufReader::new(File::open(list)?).lines().collect::<Result<Vec<_>, _>>()?;
    let next = AtomicUsize::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let work = || -> Outcome<()> {
            let mut page = Box::new(Page([0; FIRST_READ]));
            while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                File::open(path)?.read_at(&mut page.0, 0)?;
            }
            Ok(())
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a thread failed")?)
    })?;
    Ok((begin.elapsed().as_secs_f64(), paths.len()))
}

fn walk_positional(path: &str, start: u64) -> Outcome<(f64, usize)> {
    let begin = Instant::now();
    let file = File::open(path)?;
    let mut header = [0; 8];
    let (mut position, mut count) = (start, 0);
    while file.read_at(&mut header, position)? == header.len() {
        let Some(length) = item_length(header) else { break };
        position += 8 + length;
        count += 1;
    }
    Ok((begin.elapsed().as_secs_f64(), count))
}

fn walk_mapped(path: &str, start: u64) -> Outcome<(f64, usize)> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let begin = Instant::now();
    let file = File::open(path)?;
    let size = usize::try_from(file.metadata()?.len())?;
    // SAFETY: a new private read-only mapping of the whole file; the benchmark does not truncate its file.
    let address = unsafe { mmap(std::ptr::null_mut(), size, ProtFlags::READ, MapFlags::PRIVATE, &file, 0) }?;
    // SAFETY: the mapping is `size` bytes long and lives until `munmap` below.
    let bytes = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), size) };
    let (mut position, mut count) = (usize::try_from(start)?, 0);
    while let Some(&header) = bytes.get(position..).and_then(|rest| rest.first_chunk::<8>()) {
        let Some(length) = item_length(header) else { break };
        position += 8 + usize::try_from(length)?;
        count += 1;
    }
    let seconds = begin.elapsed().as_secs_f64();
    // SAFETY: `bytes` is not used after this.
    unsafe { munmap(address, size) }?;
    Ok((seconds, count))
}

fn item_length(header: [u8; 8]) -> Option<u64> {
    let [0xFE, 0xFF, 0x00, 0xE0, length @ ..] = header else { return None };
    Some(u64::from(u32::from_le_bytes(length)))
}
