//! Walks over all fragments of a file, as fast as its storage allows: with one reader, or with several on a
//! stretch each.

use super::fragments::{Fragments, Limit, Pace, Stop, Walker};
use crate::base::error::Result;
use crate::base::source::{Access, Source};
use crate::dicom::element::Encoding;
use crate::frames::notes::Notes;

/// Items after which their mean distance decides how to read on.
const SAMPLE: usize = 16;
/// Mean distance in bytes below which streaming is cheaper than single reads on cold storage.
const STREAM_BELOW: u64 = 128 * 1024;
/// Expected number of items from which several readers pay.
const PARALLEL_FROM: u64 = 4_000;
/// Consecutive items that make a guessed beginning credible.
const CHAIN: usize = 8;

/// Walks from `base` (the first byte after the BOT item) to the delimiter or to where the items stop.
pub fn walk(source: &dyn Source, base: u64, encoding: Encoding, notes: &mut Notes) -> Result<Fragments> {
    let mut fragments = Fragments::default();
    let mut walker = Walker::new(source, encoding, Pace::Single);
    let sample = Limit { position: u64::MAX, count: SAMPLE };
    let Stop::At(mut position) = walker.run(base, sample, &mut fragments, notes)? else {
        return Ok(fragments);
    };
    let mean = (position - base) / SAMPLE as u64;
    // A remote source plans by itself.
    if mean < STREAM_BELOW && source.remote().is_none() {
        source.advise(Access::Sequential);
        walker.pace = Pace::Stream;
        let rest = (source.size() - position) / mean.max(8);
        if let Some((file, readers)) = source.shared().filter(|_| rest >= PARALLEL_FROM) {
            let starts = guess_starts(source, position, mean, readers, encoding)?;
            match walk_in_parallel(file, position, &starts, encoding, &mut fragments, notes)? {
                Stop::End => return Ok(fragments),
                Stop::At(next) => position = next,
            }
        }
    }
    walker.run(position, Limit::NONE, &mut fragments, notes)?;
    Ok(fragments)
}

/// Walks over several stretches of a file in parallel; returns how far the joined stretches reach.
///
/// Where an item begins in the middle of a file is a guess. Only if the stretch before ends exactly there is
/// the next one joined: the result is that of a walk from the beginning.
fn walk_in_parallel(
    source: &(dyn Source + Sync),
    position: u64,
    starts: &[u64],
    encoding: Encoding,
    fragments: &mut Fragments,
    notes: &mut Notes,
) -> Result<Stop> {
    let froms = std::iter::once(position).chain(starts.iter().copied());
    let tos = starts.iter().copied().chain([u64::MAX]);
    let run = move |source: &dyn Source, from, to| {
        let (mut found, mut notes) = (Fragments::default(), Notes::default());
        let limit = Limit { position: to, count: usize::MAX };
        let stop = Walker::new(source, encoding, Pace::Stream).run(from, limit, &mut found, &mut notes);
        (stop, found, notes)
    };
    std::thread::scope(|scope| {
        let mut stretches = froms.zip(tos);
        let first = stretches.next();
        let spawn = |(from, to)| {
            let own = move || match source.reopened() {
                Some(own) => run(&own, from, to),
                None => run(source, from, to),
            };
            (from, scope.spawn(own))
        };
        let others: Vec<_> = stretches.map(spawn).collect();
        let mut reached = position;
        let first = first.map(|(from, to)| (from, run(source, from, to)));
        let joined = others.into_iter().map_while(|(from, thread)| Some((from, thread.join().ok()?)));
        for (from, (stop, found, found_notes)) in first.into_iter().chain(joined) {
            if from != reached {
                break;
            }
            fragments.append(found)?;
            notes.join(found_notes);
            match stop? {
                Stop::End => return Ok(Stop::End),
                Stop::At(next) => reached = next,
            }
        }
        Ok(Stop::At(reached))
    })
}

/// Guesses where items begin near the borders of `readers` equal stretches.
fn guess_starts(
    source: &dyn Source,
    from: u64,
    mean: u64,
    readers: usize,
    encoding: Encoding,
) -> Result<Vec<u64>> {
    let mut starts = Vec::new();
    let length = (source.size() - from) / readers as u64;
    let mut bytes = vec![0; usize::try_from(mean * 4).unwrap_or(0).clamp(4096, 1 << 20)];
    for stretch in 1..readers as u64 {
        let near = from + length * stretch;
        // Cold storage is read in one pass: jumps would only cost time.
        if !source.read_resident(near, &mut [0]) {
            return Ok(Vec::new());
        }
        let count = source.read_at(near, &mut bytes)?;
        let window = bytes.get(..count).unwrap_or_default();
        let tags = window.windows(4).zip(near..).filter(|(tag, _)| *tag == [0xFE, 0xFF, 0x00, 0xE0]);
        for (_, position) in tags {
            if begins_a_chain(source, position, encoding)? {
                starts.push(position);
                break;
            }
        }
    }
    Ok(starts)
}

/// Whether several items follow one another here: payloads may hold the bytes of a tag by chance.
fn begins_a_chain(source: &dyn Source, position: u64, encoding: Encoding) -> Result<bool> {
    let mut found = Fragments::default();
    let limit = Limit { position: u64::MAX, count: CHAIN };
    let stop =
        Walker::new(source, encoding, Pace::Single).run(position, limit, &mut found, &mut Notes::default());
    match stop {
        Ok(_) => Ok(found.len() == CHAIN),
        Err(error) if error.kind.is_environment() => Err(error),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::source::FileSource;

    fn item(payload: &[u8]) -> Vec<u8> {
        [&[0xFE, 0xFF, 0x00, 0xE0], (payload.len() as u32).to_le_bytes().as_slice(), payload].concat()
    }

    /// A payload that is itself a chain of items, which a guess in the middle of a file takes for real ones.
    fn decoy(links: usize) -> Vec<u8> {
        item(b"ab").repeat(links)
    }

    fn walk_both(bytes: &[u8], readers: usize) -> ((Fragments, Notes), (Fragments, Notes)) {
        let name = format!("voxtier-walk-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        let walked = |readers| {
            let file = FileSource::open(&path).unwrap().with_readers(readers);
            let mut notes = Notes::default();
            (walk(&file, 0, Encoding::EXPLICIT_LE, &mut notes).unwrap(), notes)
        };
        let both = (walked(1), walked(readers));
        std::fs::remove_file(&path).unwrap();
        both
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn several_readers_find_what_one_finds(
            readers in 2_usize..6,
            plain in 1_usize..60,
            links in 0_usize..40,
            every in 1_usize..5,
            damage in prop::option::of((0_usize..25_000, 0_usize..8)),
        ) {
            let mut bytes = Vec::new();
            for index in 0..25_000 {
                let payload = if index % every == 0 { decoy(links) } else { vec![index as u8; plain * 2] };
                let mut item = item(&payload);
                if let Some((_, byte)) = damage.filter(|(at, _)| *at == index) {
                    item[byte] ^= 0x55;
                }
                bytes.extend(item);
            }
            let (one, several) = walk_both(&bytes, readers);
            prop_assert_eq!(one, several);
        }
    }

    #[test]
    fn a_decoy_at_every_guess_is_recognised() {
        let huge = item(&decoy(100_000));
        let small = item(b"abcdef").repeat(30_000);
        let bytes = [small.clone(), huge, small].concat();
        let (one, several) = walk_both(&bytes, 4);
        assert_eq!(one.0.len(), 60_001);
        assert_eq!(one, several);
    }
}
