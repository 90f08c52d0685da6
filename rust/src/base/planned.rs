//! A remote object read through few large requests: what parsers read is taken out of blocks that are fetched
//! ahead, as far as that costs less than further requests.

use std::sync::{Mutex, PoisonError};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Fingerprint, Range, Remote, Source};

/// Longest request; longer ranges are cut into several that are sent at the same time.
const LONGEST: u64 = 8 << 20;
/// Bytes behind a read that come with it: the header that follows a table or a value.
const BEHIND: u64 = 4 << 10;
/// Bytes that come with a read far from all others.
const JUMP: u64 = 512;
/// Blocks beyond this are given up, those farthest from the newest first.
const MOST_KEPT: usize = 96 << 20;
/// Bytes that are asked for together at most: they are all kept until they are read.
pub const MOST_TOGETHER: u64 = 64 << 20;
/// Requests that a walk sends at first; each further group is twice as large, up to [`MOST_AHEAD`].
const FIRST_AHEAD: usize = 4;
const MOST_AHEAD: usize = 8;
/// Ranges are joined across what nobody asked for, up to this part of what was asked for: a quarter.
const WASTE: u64 = 4;
/// Gap that is always read: less than the headers of a request.
const SMALL_GAP: u64 = 2 << 10;

/// Fetches bytes of an object, of one state of it or not at all.
pub trait Fetch {
    /// The bytes of each range, asked for at the same time.
    ///
    /// # Errors
    /// Why one of them could not be had; `changed_during_read` where the object is another by now.
    fn fetch(&self, ranges: &[Range]) -> Result<Vec<Vec<u8>>>;
}

/// What a request costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Bytes that arrive in the time that a request takes to begin: latency times bandwidth.
    pub bridge: u64,
    /// Bytes of the first read of an object whose head is not here.
    pub first_read: u64,
}

impl Default for Cost {
    fn default() -> Self {
        Self { bridge: 1 << 20, first_read: 64 << 10 }
    }
}

/// An object of known state, and the blocks of it that were fetched.
pub struct Planned<F> {
    fetch: F,
    fingerprint: Fingerprint,
    cost: Cost,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    /// In the order of their beginnings; none overlap.
    list: Vec<(u64, Vec<u8>)>,
    requests: u64,
    /// Length of the next read that goes on from the last one; 0: not yet.
    step: u64,
    walk: Option<Walk>,
}

#[derive(Clone, Copy)]
struct Walk {
    /// Bytes of each request.
    piece: u64,
    ahead: usize,
}

impl<F: Fetch> Planned<F> {
    /// An object of which the first bytes are here, if any.
    pub fn new(fetch: F, fingerprint: Fingerprint, cost: Cost, head: Vec<u8>) -> Self {
        let mut blocks = Blocks::default();
        if !head.is_empty() {
            blocks.requests = 1;
            blocks.list.push((0, head));
        }
        Self { fetch, fingerprint, cost, blocks: Mutex::new(blocks) }
    }

    /// What fetches.
    pub fn into_fetch(self) -> F {
        self.fetch
    }

    fn get(&self, blocks: &mut Blocks, ranges: &[Range]) -> Result<()> {
        let fetched = self.fetch.fetch(ranges)?;
        blocks.requests += ranges.len() as u64;
        if fetched.len() != ranges.len() {
            let detail = format!("{} of {} ranges were returned", fetched.len(), ranges.len());
            return Err(Error::new(ErrorKind::IoError, detail));
        }
        for (&(start, end), bytes) in ranges.iter().zip(fetched) {
            if bytes.len() as u64 != end - start {
                let detail = format!("{} of {} bytes were returned", bytes.len(), end - start);
                return Err(Error::at(ErrorKind::IoError, start, detail));
            }
            blocks.add(start, bytes);
        }
        Ok(())
    }

    /// The requests that bring the bytes from `position` on, which no block holds, up to `end` or part of them.
    fn plan(&self, blocks: &mut Blocks, position: u64, end: u64) -> Vec<Range> {
        let size = self.fingerprint.size;
        if blocks.list.is_empty() && position < self.cost.first_read {
            return vec![(0, self.cost.first_read.max(end).min(size))];
        }
        let before = blocks.end_before(position);
        let limit = blocks.start_after(position).unwrap_or(size);
        let goes_on = before.filter(|before| position - before <= self.cost.bridge);
        let from = goes_on.unwrap_or(position);
        if let Some(walk) = blocks.walk {
            if goes_on.is_some() {
                blocks.walk = Some(Walk { ahead: (walk.ahead * 2).min(MOST_AHEAD), ..walk });
                return pieces(from, limit, walk.piece).take(walk.ahead).collect();
            }
            blocks.walk = None; // what was said of the object is wrong
        }
        let length = if goes_on.is_some() {
            let step = blocks.step.max(self.cost.bridge);
            blocks.step = (step * 4).min(LONGEST.max(self.cost.bridge));
            step.max((end - from).saturating_add(BEHIND))
        } else {
            blocks.step = 0;
            let rest = size - position;
            if rest <= self.cost.bridge { rest } else { (end - position).saturating_add(JUMP) }
        };
        let to = from.saturating_add(length).min(limit);
        pieces(from, to, LONGEST.max(self.cost.bridge)).take(MOST_AHEAD).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range in pieces of at most `length` bytes.
fn pieces(start: u64, end: u64, length: u64) -> impl Iterator<Item = Range> {
    let length = length.max(1);
    let mut from = start;
    std::iter::from_fn(move || {
        let piece = (from < end).then(|| (from, from.saturating_add(length).min(end)));
        from = piece.map_or(from, |(_, to)| to);
        piece
    })
}

impl Blocks {
    /// The bytes from `position` on that are here.
    fn at(&self, position: u64) -> &[u8] {
        let after = self.list.partition_point(|(start, _)| *start <= position);
        let block = after.checked_sub(1).and_then(|index| self.list.get(index));
        let within = block.and_then(|(start, bytes)| bytes.get(usize::try_from(position - start).ok()?..));
        within.unwrap_or_default()
    }

    fn end_before(&self, position: u64) -> Option<u64> {
        let ends = self.list.iter().map(|(start, bytes)| start + bytes.len() as u64);
        ends.filter(|end| *end <= position).max()
    }

    fn start_after(&self, position: u64) -> Option<u64> {
        self.list.iter().map(|(start, _)| *start).find(|start| *start > position)
    }

    fn add(&mut self, start: u64, bytes: Vec<u8>) {
        let place = self.list.partition_point(|(other, _)| *other < start);
        self.list.insert(place, (start, bytes));
        while self.list.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > MOST_KEPT && self.list.len() > 2
        {
            // The header stays: parsers come back to it. So does what was just fetched, which is read next.
            let behind = self.list.iter().enumerate().skip(1).filter(|(_, (other, _))| *other != start);
            let farthest = behind.max_by_key(|(_, (other, _))| other.abs_diff(start)).map(|(place, _)| place);
            let Some(farthest) = farthest else { break };
            self.list.remove(farthest);
        }
    }

    /// The parts of a range that no block holds.
    fn missing(&self, (start, end): Range) -> Vec<Range> {
        let (mut missing, mut from) = (Vec::new(), start);
        for (block, bytes) in &self.list {
            let past = block + bytes.len() as u64;
            if past <= from || *block >= end {
                continue;
            }
            if *block > from {
                missing.push((from, *block));
            }
            from = from.max(past);
        }
        if from < end {
            missing.push((from, end));
        }
        missing
    }
}

/// Joins ranges that are asked for at the same time, so that few bytes more take fewer requests.
fn join(mut ranges: Vec<Range>, bridge: u64) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<(Range, u64)> = Vec::new();
    for (start, end) in ranges {
        if let Some(((first, last), useful)) = joined.last_mut() {
            let new = end.saturating_sub(start.max(*last));
            let wasted = (*last - *first).saturating_sub(*useful);
            let gap = start.saturating_sub(*last);
            let most = (*useful + new) / WASTE;
            if gap <= SMALL_GAP || (gap <= bridge && wasted + gap <= most) {
                *last = end.max(*last);
                *useful += new;
                continue;
            }
        }
        joined.push(((start, end), end - start));
    }
    joined.into_iter().map(|(range, _)| range).collect()
}

impl<F: Fetch> Source for Planned<F> {
    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let end = offset.saturating_add(buffer.len() as u64).min(self.fingerprint.size);
        let mut blocks = self.lock();
        let (mut position, mut rest) = (offset, buffer);
        while position < end {
            let here = blocks.at(position);
            if here.is_empty() {
                let ranges = self.plan(&mut blocks, position, end);
                self.get(&mut blocks, &ranges)?;
                continue;
            }
            let count = here.len().min(rest.len()).min(usize::try_from(end - position).unwrap_or(usize::MAX));
            let (to, behind) = rest.split_at_mut_checked(count).unwrap_or_default();
            to.copy_from_slice(here.get(..count).unwrap_or_default());
            rest = behind;
            position += count as u64;
        }
        Ok(usize::try_from(position.saturating_sub(offset)).unwrap_or(0))
    }

    fn remote(&self) -> Option<&dyn Remote> {
        Some(self)
    }
}

impl<F: Fetch> Remote for Planned<F> {
    fn prefetch(&self, ranges: &[Range]) -> Result<()> {
        let size = self.fingerprint.size;
        let mut blocks = self.lock();
        let cut = ranges.iter().map(|&(start, end)| (start.min(size), end.min(size)));
        let missing: Vec<Range> = cut.flat_map(|range| blocks.missing(range)).collect();
        let longest = LONGEST.max(self.cost.bridge);
        let joined = join(missing, self.cost.bridge);
        // A range that is a little longer than a piece stays one request.
        let parts = joined.into_iter().flat_map(|(start, end)| {
            let count = ((end - start) / longest).max(1);
            pieces(start, end, (end - start).div_ceil(count))
        });
        let parts: Vec<Range> = parts.flat_map(|range| blocks.missing(range)).collect();
        if parts.is_empty() { Ok(()) } else { self.get(&mut blocks, &parts) }
    }

    fn prefetch_beside(&self, ranges: &[Range], beside: Range) -> Result<()> {
        let blocks = self.lock();
        let is_here = ranges.iter().all(|&range| blocks.missing(range).is_empty());
        drop(blocks);
        if is_here {
            return Ok(());
        }
        let takes_no_longer = beside.1.saturating_sub(beside.0) <= self.cost.bridge;
        let all = ranges.iter().copied().chain(takes_no_longer.then_some(beside));
        self.prefetch(&all.collect::<Vec<_>>())
    }

    fn plan_walk(&self, from: u64, items: u64) {
        let mut blocks = self.lock();
        let size = self.fingerprint.size;
        let from = blocks.end_before(u64::MAX).unwrap_or(from).max(from).min(size);
        let rest = size - from;
        if items < 2 || rest / items > self.cost.bridge {
            return;
        }
        let requests = (size / LONGEST).saturating_sub(blocks.requests).max(2);
        let piece = rest.div_ceil(requests).max(self.cost.bridge);
        blocks.walk = Some(Walk { piece, ahead: FIRST_AHEAD });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    struct Counted<'a> {
        bytes: &'a [u8],
        asked: &'a RefCell<Vec<Range>>,
    }

    impl Fetch for Counted<'_> {
        fn fetch(&self, ranges: &[Range]) -> Result<Vec<Vec<u8>>> {
            self.asked.borrow_mut().extend(ranges);
            Ok(ranges.iter().map(|&(a, b)| self.bytes[a as usize..b as usize].to_vec()).collect())
        }
    }

    const COST: Cost = Cost { bridge: 1 << 20, first_read: 64 << 10 };

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|index| (index * 31 % 251) as u8).collect()
    }

    fn object<'a>(bytes: &'a [u8], head: usize, asked: &'a RefCell<Vec<Range>>) -> Planned<Counted<'a>> {
        let head = bytes[..head.min(bytes.len())].to_vec();
        Planned::new(Counted { bytes, asked }, Fingerprint::of_size(bytes.len() as u64), COST, head)
    }

    #[test]
    fn a_walk_over_small_items_takes_pieces_of_eight_megabytes() {
        let (bytes, asked) = (content(60 << 20), RefCell::default());
        let source = object(&bytes, 64 << 10, &asked);
        source.plan_walk(4096, 300);
        for item in 0..300_u64 {
            let mut header = [0; 16];
            source.read_at(4096 + item * 200_000, &mut header).unwrap();
        }
        assert!(asked.borrow().len() < 60 / 8, "{}", asked.borrow().len());
        let moved: u64 = asked.borrow().iter().map(|(a, b)| b - a).sum();
        assert!(moved <= 60 << 20);
    }

    #[test]
    fn a_walk_over_large_items_takes_their_headers_alone() {
        let (bytes, asked) = (content(40 << 20), RefCell::default());
        let source = object(&bytes, 64 << 10, &asked);
        source.plan_walk(4096, 10);
        for item in 0..10_u64 {
            source.read_at(4096 + item * (4 << 20), &mut [0; 16]).unwrap();
        }
        let moved: u64 = asked.borrow().iter().map(|(a, b)| b - a).sum();
        assert_eq!((asked.borrow().len(), moved), (9, 9 * (16 + JUMP)));
    }

    #[test]
    fn a_false_count_of_items_does_not_stream_the_object() {
        let (bytes, asked) = (content(80 << 20), RefCell::default());
        let source = object(&bytes, 64 << 10, &asked);
        source.plan_walk(4096, 1 << 30);
        for item in 0..2_u64 {
            source.read_at(4096 + item * (60 << 20), &mut [0; 16]).unwrap();
        }
        assert_eq!(asked.borrow().len(), 1);
    }

    #[test]
    fn frames_asked_together_are_joined_across_small_gaps() {
        let (bytes, asked) = (content(4 << 20), RefCell::default());
        let source = object(&bytes, 0, &asked);
        source
            .prefetch(&[(2 << 20, 3 << 20), (0, 100), (108, 200), (1000, 2000), (1 << 19, (1 << 19) + 9)])
            .unwrap();
        assert_eq!(*asked.borrow(), [(0, 2000), (1 << 19, (1 << 19) + 9), (2 << 20, 3 << 20)]);
        source.prefetch(&[(0, 2000), (2 << 20, 3 << 20)]).unwrap();
        assert_eq!(asked.borrow().len(), 3);
    }

    #[test]
    fn the_end_is_fetched_beside_what_is_missing_never_alone_and_only_if_short() {
        let (bytes, asked) = (content(20 << 20), RefCell::default());
        let source = object(&bytes, 64 << 10, &asked);
        let size = bytes.len() as u64;
        source.prefetch_beside(&[(0, 1000)], (size - 1000, size)).unwrap();
        assert!(asked.borrow().is_empty());
        source.prefetch_beside(&[(0, 200 << 10)], (size - 1000, size)).unwrap();
        assert_eq!(*asked.borrow(), [(64 << 10, 200 << 10), (size - 1000, size)]);
        source.prefetch_beside(&[(300 << 10, 400 << 10)], (2 << 20, 5 << 20)).unwrap();
        assert_eq!(asked.borrow().last(), Some(&(300 << 10, 400 << 10)));
    }

    #[test]
    fn a_short_answer_is_an_error() {
        struct Short;
        impl Fetch for Short {
            fn fetch(&self, ranges: &[Range]) -> Result<Vec<Vec<u8>>> {
                Ok(ranges.iter().map(|(a, b)| vec![0; (b - a) as usize / 2]).collect())
            }
        }
        let source = Planned::new(Short, Fingerprint::of_size(100), COST, Vec::new());
        assert_eq!(source.read_at(0, &mut [0; 10]).unwrap_err().kind, ErrorKind::IoError);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_reads_give_the_bytes_of_the_object(
            size in 0_usize..6_000_000,
            head in 0_usize..100_000,
            reads in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..3_000_000), 1..12),
            walk in prop::option::of(2_u64..5000),
        ) {
            let (bytes, asked) = (content(size), RefCell::default());
            let source = object(&bytes, head, &asked);
            if let Some(items) = walk {
                source.plan_walk(100, items);
            }
            for (number, (at, length)) in reads.into_iter().enumerate() {
                let offset = at.index(size + 1);
                if number % 3 == 2 {
                    source.prefetch(&[(offset as u64, (offset + length) as u64)]).unwrap();
                }
                let mut buffer = vec![0; length];
                let count = source.read_at(offset as u64, &mut buffer).unwrap();
                prop_assert_eq!(count, length.min(size - offset));
                prop_assert!(buffer[..count] == bytes[offset..offset + count]);
            }
            let mut asked = asked.into_inner();
            asked.sort_unstable();
            // No byte is asked for twice while it is kept.
            prop_assert!(asked.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        }
    }
}
