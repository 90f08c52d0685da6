//! Where a patch begins. The draws are those of `voxtier.volumes.training.sampling`, bit for bit.

use super::random::Philox;
use super::subjects::{Foreground, Part, Subject};
use crate::base::error::{Error, ErrorKind, Result};
use crate::tiledb::output::convert::{Number, Recipe};
use crate::tiledb::output::sink::Sink;
use crate::tiledb::plan::Boxes;
use crate::tiledb::reader::Effort;

/// How the first voxel of a patch is chosen.
#[derive(Clone, Debug)]
pub enum Place {
    /// It is given, along x, y, z.
    At([i64; 3]),
    /// A voxel of the foreground is the centre with a probability, else any place.
    Drawn {
        /// Random numbers of the item.
        random: Philox,
        /// Probability of the foreground; `None` never asks for it.
        foreground: Option<f64>,
    },
}

impl Place {
    /// The first voxel of a patch of a size in a subject.
    ///
    /// # Errors
    /// Those of reading the mask, and `bad_tile` when its counts are not those of its voxels.
    pub fn choose(&self, subject: &Subject, size: [u64; 3], effort: Effort) -> Result<[i64; 3]> {
        let (mut random, probability) = match self {
            Self::At(start) => return Ok(*start),
            Self::Drawn { random, foreground } => (random.clone(), *foreground),
        };
        let shape = subject.parts.first().map_or([0; 3], Part::shape);
        let drawn = probability.is_some_and(|probability| random.unit() < probability);
        if let (true, Some(foreground), Some(mask)) = (drawn, &subject.foreground, subject.parts.last()) {
            let total = foreground.cumulative.last().copied().unwrap_or(0);
            if total > 0 {
                let voxel = foreground.voxel(mask, random.below(total), effort)?;
                return Ok(around(voxel, shape, size));
            }
        }
        let [x, y, z] = rooms(shape, size);
        let mut any =
            |room: i64| if room >= 0 { random.below(room as u64 + 1) as i64 } else { centred(room) };
        Ok([any(x), any(y), any(z)])
    }
}

impl Foreground {
    /// The voxel of a number, counted block by block; within a block z varies fastest.
    fn voxel(&self, mask: &Part, number: u64, effort: Effort) -> Result<[u64; 3]> {
        let block = self.cumulative.partition_point(|&sum| sum <= number) as u64;
        let before = block.checked_sub(1).and_then(|last| self.cumulative.get(last as usize).copied());
        let [_, across, along] = self.blocks;
        let (across, along) = (across.max(1), along.max(1));
        let corner = [block / along / across, block / along % across, block % along];
        let corner = corner.map(|index| index.saturating_mul(self.side));
        let ([x, y, z], [cx, cy, cz]) = (mask.shape(), corner);
        let sides =
            [x, y, z].into_iter().zip(corner).map(|(size, low)| size.saturating_sub(low).min(self.side));
        let [sx, sy, sz]: [u64; 3] = sides.collect::<Vec<_>>().try_into().unwrap_or([0; 3]);
        let mut cells = vec![0; (sx * sy * sz) as usize * mask.tiles().cell()];
        let sink = Sink::new(&mut cells, Recipe::copy(mask.recipe().from()));
        let boxes = Boxes {
            starts: &mask.stored([cx as i64, cy as i64, cz as i64]),
            size: &mask.stored([sx, sy, sz]),
            steps: &mask.stored([sy * sz, sz, 1]),
            first: 0,
            each: 0,
        };
        mask.tiles().read_boxes(&boxes, [0; 8], &sink, effort)?;
        let kind = mask.recipe().from();
        let mut left = number - before.unwrap_or(0);
        for (at, cell) in (0_u64..).zip(cells.chunks_exact(kind.bytes())) {
            let value = as_double(kind, cell);
            if self.label.map_or(value != 0.0, |label| value == label) {
                if left == 0 {
                    return Ok([cx + at / sz / sy, cy + at / sz % sy, cz + at % sz]);
                }
                left -= 1;
            }
        }
        let detail = "the mask has fewer foreground voxels than were counted: ingest it again";
        Err(Error::new(ErrorKind::BadTile, detail))
    }
}

fn as_double(kind: Number, cell: &[u8]) -> f64 {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(cell).for_each(|(to, from)| *to = *from);
    let [a, b, c, d, ..] = bytes;
    match kind {
        Number::U8 => f64::from(a),
        Number::I8 => f64::from(a as i8),
        Number::U16 => f64::from(u16::from_le_bytes([a, b])),
        Number::I16 => f64::from(i16::from_le_bytes([a, b])),
        Number::U32 => f64::from(u32::from_le_bytes([a, b, c, d])),
        Number::I32 => f64::from(i32::from_le_bytes([a, b, c, d])),
        Number::F32 => f64::from(f32::from_le_bytes([a, b, c, d])),
        Number::U64 => u64::from_le_bytes(bytes) as f64,
        Number::I64 => i64::from_le_bytes(bytes) as f64,
        Number::F64 => f64::from_le_bytes(bytes),
    }
}

/// How far a patch can move along each axis; negative where the volume is shorter.
fn rooms(shape: [u64; 3], size: [u64; 3]) -> [i64; 3] {
    let ([a, b, c], [x, y, z]) = (shape, size);
    [a as i64 - x as i64, b as i64 - y as i64, c as i64 - z as i64]
}

/// The start of a patch that is longer than the volume: the volume lies in its middle.
fn centred(room: i64) -> i64 {
    -(-room / 2)
}

/// The start of a patch around a voxel, moved into the volume where that is possible.
fn around(voxel: [u64; 3], shape: [u64; 3], size: [u64; 3]) -> [i64; 3] {
    let ([vx, vy, vz], [sx, sy, sz], [rx, ry, rz]) = (voxel, size, rooms(shape, size));
    let one = |centre: u64, wanted: u64, room: i64| {
        if room >= 0 { (centre as i64 - wanted as i64 / 2).clamp(0, room) } else { centred(room) }
    };
    [one(vx, sx, rx), one(vy, sy, ry), one(vz, sz, rz)]
}
