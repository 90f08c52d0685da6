//! Connected components of a segmentation, and their parts in blocks: where the lesions of a mask lie.
//!
//! Voxels of one class that touch by a face, an edge or a corner belong together. A block of the mask, looked at
//! alone, falls into parts, numbered by their first voxel; each part belongs to one component. Whoever knows the
//! numbers finds any voxel of a component by reading one block.

/// Runs of equal voxels at most: a mask that has more is noise.
const MOST_RUNS: usize = 1 << 22;

/// What one component has in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Number of the component, by its first voxel.
    pub component: u32,
    /// Number of the block; z varies fastest.
    pub block: u32,
    /// Number of the part in its block, by its first voxel.
    pub ordinal: u32,
    /// Its voxels.
    pub voxels: u32,
}

/// Equal voxels along z, inside of one block.
struct Run {
    row: u32,
    low: u32,
    high: u32,
    block: u32,
    label: u8,
}

struct Runs {
    runs: Vec<Run>,
    /// The first run of each row (x, y), and the number of all.
    rows: Vec<u32>,
    /// The first run of the same component, over the whole mask and inside of the block.
    whole: Vec<u32>,
    local: Vec<u32>,
}

/// The components of labels (x, y, z), z fastest: the class of each, and their parts in blocks of `side` voxels.
///
/// `None` for labels that do not fit the shape, or are noise.
pub fn components(labels: &[u8], shape: [usize; 3], side: usize) -> Option<(Vec<u8>, Vec<Part>)> {
    let mut found = Runs::find(labels, shape, side)?;
    let (mut classes, mut numbers) = (Vec::new(), vec![u32::MAX; found.runs.len()]);
    let mut parts: Vec<Part> = Vec::new();
    let mut places = vec![u32::MAX; found.runs.len()];
    let [x, y, z] = shape.map(|count| count.div_ceil(side));
    let mut ordinals = vec![0_u32; x * y * z];
    for number in 0..found.runs.len() {
        let (whole, local) = (root(&mut found.whole, number), root(&mut found.local, number));
        let run = found.runs.get(number)?;
        let component = numbers.get_mut(whole)?;
        if *component == u32::MAX {
            *component = classes.len() as u32;
            classes.push(run.label);
        }
        let place = places.get_mut(local)?;
        if *place == u32::MAX {
            *place = parts.len() as u32;
            let ordinal = ordinals.get_mut(run.block as usize)?;
            parts.push(Part { component: *component, block: run.block, ordinal: *ordinal, voxels: 0 });
            *ordinal += 1;
        }
        parts.get_mut(*place as usize)?.voxels += run.high - run.low;
    }
    parts.sort_unstable();
    Some((classes, parts))
}

/// The voxel of a number in a part of one block, whose labels are given.
pub fn voxel(labels: &[u8], shape: [usize; 3], ordinal: u32, number: u32) -> Option<[usize; 3]> {
    let side = shape.into_iter().max()?.max(1);
    let mut found = Runs::find(labels, shape, side)?;
    let (mut ordinals, mut left) = (0, number);
    let mut numbers = vec![u32::MAX; found.runs.len()];
    for at in 0..found.runs.len() {
        let part = numbers.get_mut(root(&mut found.local, at))?;
        if *part == u32::MAX {
            *part = ordinals;
            ordinals += 1;
        }
        let run = found.runs.get(at)?;
        if *part == ordinal {
            if left < run.high - run.low {
                let [_, across, _] = shape;
                let row = run.row as usize;
                return Some([row / across, row % across, (run.low + left) as usize]);
            }
            left -= run.high - run.low;
        }
    }
    None
}

impl Runs {
    fn find(labels: &[u8], shape: [usize; 3], side: usize) -> Option<Self> {
        let [x, y, z] = shape;
        if side == 0
            || x.checked_mul(y)?.checked_mul(z)? != labels.len()
            || u32::try_from(labels.len()).is_err()
        {
            return None;
        }
        let blocks = shape.map(|count| count.div_ceil(side));
        let [_, across, along] = blocks;
        let mut found = Self { runs: Vec::new(), rows: vec![0], whole: Vec::new(), local: Vec::new() };
        for (row, voxels) in labels.chunks_exact(z.max(1)).enumerate() {
            let block = ((row / y / side) * across + row % y / side) * along;
            let mut low = 0;
            for run in voxels.chunk_by(|a, b| a == b) {
                let (end, label) = (low + run.len(), run.first().copied().unwrap_or(0));
                while low < end {
                    let high = end.min((low / side + 1) * side);
                    if label != 0 {
                        let [low, high] = [low, high].map(|at| at as u32);
                        let block = (block + low as usize / side) as u32;
                        found.runs.push(Run { row: row as u32, low, high, block, label });
                    }
                    low = high;
                }
            }
            if found.runs.len() > MOST_RUNS {
                return None;
            }
            found.rows.push(found.runs.len() as u32);
        }
        found.whole = (0..found.runs.len() as u32).collect();
        found.local = found.whole.clone();
        for row in 0..x * y {
            found.join(row, row);
            let (px, py) = (row / y, row % y);
            let before = [(0, -1), (-1, -1), (-1, 0), (-1, 1)];
            for (dx, dy) in before {
                let (Some(px), Some(py)) = (px.checked_add_signed(dx), py.checked_add_signed(dy)) else {
                    continue;
                };
                if py < y {
                    found.join(px * y + py, row);
                }
            }
        }
        Some(found)
    }

    /// Joins runs of two rows that touch; of one row, neighbours that a block's end has split.
    fn join(&mut self, first: usize, second: usize) {
        let span = |row: usize| {
            let end = self.rows.get(row + 1).copied().unwrap_or(0) as usize;
            self.rows.get(row).copied().unwrap_or(0) as usize..end
        };
        let (all, mut begin) = (span(first), span(first).start);
        for at in span(second) {
            let Some(run) = self.runs.get(at) else { return };
            // What ends before this run ends before all later ones.
            let ends_before = |near: &Run| near.high < run.low;
            while begin < all.end && self.runs.get(begin).is_some_and(ends_before) {
                begin += 1;
            }
            for other in begin..all.end {
                let Some(near) = self.runs.get(other) else { return };
                if near.low > run.high {
                    break;
                }
                if near.label == run.label && other != at {
                    unite(&mut self.whole, other, at);
                    if near.block == run.block {
                        unite(&mut self.local, other, at);
                    }
                }
            }
        }
    }
}

/// The first run of a component; the way to it is halved.
fn root(first: &mut [u32], at: usize) -> usize {
    let mut at = at as u32;
    while let Some(&next) = first.get(at as usize)
        && next != at
    {
        let further = first.get(next as usize).copied().unwrap_or(next);
        if let Some(slot) = first.get_mut(at as usize) {
            *slot = further;
        }
        at = next;
    }
    at as usize
}

fn unite(first: &mut [u32], one: usize, other: usize) {
    let (one, other) = (root(first, one), root(first, other));
    if let Some(slot) = first.get_mut(one.max(other)) {
        *slot = one.min(other) as u32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The component of each voxel by flooding, numbered by first voxels.
    fn flood(labels: &[u8], shape: [usize; 3], same: impl Fn([usize; 3], [usize; 3]) -> bool) -> Vec<u32> {
        let [x, y, z] = shape;
        let mut numbers = vec![u32::MAX; labels.len()];
        let mut next = 0;
        for start in 0..labels.len() {
            if labels[start] == 0 || numbers[start] != u32::MAX {
                continue;
            }
            let mut open = vec![start];
            numbers[start] = next;
            while let Some(at) = open.pop() {
                let here = [at / z / y, at / z % y, at % z];
                for step in 0..27 {
                    let moved = [here[0] + step / 9, here[1] + step / 3 % 3, here[2] + step % 3];
                    if moved.iter().zip([x, y, z]).any(|(&to, size)| to == 0 || to > size) {
                        continue;
                    }
                    let to = [moved[0] - 1, moved[1] - 1, moved[2] - 1];
                    let other = (to[0] * y + to[1]) * z + to[2];
                    if labels[other] == labels[start] && numbers[other] == u32::MAX && same(here, to) {
                        numbers[other] = next;
                        open.push(other);
                    }
                }
            }
            next += 1;
        }
        numbers
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn components_and_parts_are_those_of_flooding(
            shape in [1_usize..9, 1_usize..9, 1_usize..9],
            side in 1_usize..6,
            cells in prop::collection::vec(prop::sample::select(vec![0_u8, 0, 0, 1, 1, 2]), 512),
        ) {
            let [x, y, z] = shape;
            let labels = &cells[..x * y * z];
            let whole = flood(labels, shape, |_, _| true);
            let block = |at: [usize; 3]| at.map(|index| index / side);
            let local = flood(labels, shape, |a, b| block(a) == block(b));
            let (classes, parts) = components(labels, shape, side).unwrap();
            prop_assert_eq!(classes.len() as u32, whole.iter().filter(|n| **n != u32::MAX).max().map_or(0, |n| n + 1));
            let total: u32 = parts.iter().map(|part| part.voxels).sum();
            prop_assert_eq!(total as usize, labels.iter().filter(|label| **label != 0).count());
            for part in &parts {
                // All voxels of the part, found in its block alone, are voxels of one local and one whole component.
                let [_, across, along] = shape.map(|count| count.div_ceil(side));
                let number = part.block as usize;
                let low = [number / along / across, number / along % across, number % along].map(|at| at * side);
                let size = [0, 1, 2].map(|axis| side.min(shape[axis] - low[axis]));
                let mut inside = Vec::new();
                for i in 0..size[0] * size[1] * size[2] {
                    let at = [i / size[2] / size[1], i / size[2] % size[1], i % size[2]];
                    inside.push(labels[((low[0] + at[0]) * y + low[1] + at[1]) * z + low[2] + at[2]]);
                }
                let mut seen = std::collections::BTreeSet::new();
                let mut owners = std::collections::BTreeSet::new();
                for number in 0..part.voxels {
                    let at = voxel(&inside, size, part.ordinal, number).unwrap();
                    let place = ((low[0] + at[0]) * y + low[1] + at[1]) * z + low[2] + at[2];
                    prop_assert_eq!(labels[place], classes[part.component as usize]);
                    prop_assert_eq!(whole[place], part.component);
                    owners.insert(local[place]);
                    seen.insert(place);
                }
                prop_assert_eq!((seen.len() as u32, owners.len()), (part.voxels, 1));
                prop_assert_eq!(voxel(&inside, size, part.ordinal, part.voxels), None);
            }
        }
    }
}
