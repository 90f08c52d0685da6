//! The voxels of a NIfTI file as rows of float32, in any of the 48 orientations.

use crate::base::closed_list::closed_list;
#[cfg(target_arch = "x86_64")]
use crate::base::cpu::cpu;
use crate::base::error::{Error, ErrorKind, Result};

closed_list! {
    /// Type of the stored numbers (NIfTI-1 `datatype`); every value is exact in float64.
    pub enum Element {
        /// `DT_INT8`.
        Int8 = "int8",
        /// `DT_UINT8`.
        Uint8 = "uint8",
        /// `DT_INT16`.
        Int16 = "int16",
        /// `DT_UINT16`.
        Uint16 = "uint16",
        /// `DT_INT32`.
        Int32 = "int32",
        /// `DT_UINT32`.
        Uint32 = "uint32",
        /// `DT_FLOAT32`.
        Float32 = "float32",
        /// `DT_FLOAT64`.
        Float64 = "float64",
    }
}

impl Element {
    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Int8 | Self::Uint8 => 1,
            Self::Int16 | Self::Uint16 => 2,
            Self::Int32 | Self::Uint32 | Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    /// Whether a voxel may be NaN or infinite.
    const fn is_float(self) -> bool {
        matches!(self, Self::Float32 | Self::Float64)
    }
}

/// How the stored numbers become voxels.
#[derive(Clone, Copy, Debug)]
pub struct Storage {
    /// Type of the stored numbers.
    pub element: Element,
    /// Whether the most significant byte comes first.
    pub is_big_endian: bool,
    /// Factor in float64 (`scl_slope`), where it is not 1.
    pub slope: Option<f64>,
    /// Summand in float64 (`scl_inter`), where it is not 0.
    pub intercept: Option<f64>,
}

impl Storage {
    /// A voxel as NiBabel and MONAI give it: product and sum rounded to float64, then float32.
    #[inline(always)]
    fn voxel(&self, stored: f64) -> f32 {
        let scaled = self.slope.map_or(stored, |slope| stored * slope);
        self.intercept.map_or(scaled, |summand| scaled + summand) as f32
    }
}

/// What is found in the voxels before they are resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Whether all voxels are equal.
    pub is_constant: bool,
    /// Whether no voxel is NaN or infinite.
    pub is_finite: bool,
}

/// One axis of the oriented volume: which axis of the file it is, and whether it runs backwards.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Axis of the file, from 0.
    pub axis: usize,
    /// Whether the first voxel is the file's last.
    pub is_flipped: bool,
}

/// The voxels of one file, seen in the orientation that is asked for.
///
/// Invariant: every offset of a voxel, `start + y * step_y + z * step_z + x * step_x`, lies inside `bytes`.
pub struct Volume<'a> {
    bytes: &'a [u8],
    storage: Storage,
    lengths: [usize; 3],
    /// Offset of the voxel (first in memory along x, 0, 0).
    start: usize,
    /// Bytes from a voxel to the next along x, in the direction of memory.
    step_x: usize,
    /// Bytes from a row to the next along y and z.
    steps: [isize; 2],
    /// Whether `row` gives the voxels of x backwards.
    is_reversed: bool,
}

impl<'a> Volume<'a> {
    /// Describes the voxels of a file.
    ///
    /// # Errors
    /// `invalid_argument` where `bytes` is not exactly the voxels of that shape, or the axes are no
    /// permutation.
    pub fn new(bytes: &'a [u8], storage: Storage, shape: [usize; 3], sources: [Source; 3]) -> Result<Self> {
        let size = storage.element.bytes();
        let wanted = shape.iter().try_fold(size, |product, length| product.checked_mul(*length));
        if wanted != Some(bytes.len()) || bytes.is_empty() || isize::try_from(bytes.len()).is_err() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{} bytes are no volume of {shape:?} times {size} bytes", bytes.len()),
            ));
        }
        let [first, second, _] = shape;
        let steps = [size, size * first, size * first * second];
        let mut axes = sources.map(|source| source.axis);
        axes.sort_unstable();
        if axes != [0, 1, 2] {
            return Err(Error::new(ErrorKind::InvalidArgument, "the axes are no permutation of 0, 1, 2"));
        }
        let of = |source: Source| {
            let length = shape.get(source.axis).copied().unwrap_or_default();
            (length, steps.get(source.axis).copied().unwrap_or_default(), source.is_flipped)
        };
        let [(nx, step_x, is_reversed), y, z] = sources.map(of);
        let mut start = 0;
        let mut walk = |(length, step, is_flipped): (usize, usize, bool)| {
            if is_flipped {
                start += (length - 1) * step;
                return -(step as isize);
            }
            step as isize
        };
        let steps = [walk(y), walk(z)];
        Ok(Self { bytes, storage, lengths: [nx, y.0, z.0], start, step_x, steps, is_reversed })
    }

    /// Voxels along x, y, z.
    pub fn lengths(&self) -> [usize; 3] {
        self.lengths
    }

    /// Whether `row` gives the voxels of x backwards.
    pub(super) fn is_reversed(&self) -> bool {
        self.is_reversed
    }

    /// Writes the voxels along x at `(y, z)` into `row`, in the order of memory.
    #[inline(always)]
    pub(super) fn row(&self, y: usize, z: usize, row: &mut [f32]) {
        let [by_y, by_z] = self.steps;
        self.row_at(self.start.wrapping_add_signed(y as isize * by_y + z as isize * by_z), row);
    }

    #[inline(always)]
    fn row_at(&self, start: usize, row: &mut [f32]) {
        let from = self.bytes.get(start..).unwrap_or_default();
        if self.is_plain() {
            self.each(from, row, |bytes| f32::from(i16::from_le_bytes(bytes)));
        } else {
            self.convert(from, row);
        }
    }

    /// Converts the voxels of a row. Inlined nowhere: it is a loop for each type, byte order and step.
    #[inline(never)]
    fn convert(&self, from: &[u8], row: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if cpu().avx2 {
            // SAFETY: the processor has the instructions.
            return unsafe { self.convert_avx2(from, row) };
        }
        self.convert_any(from, row);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn convert_avx2(&self, from: &[u8], row: &mut [f32]) {
        self.convert_any(from, row);
    }

    #[inline(always)]
    fn convert_any(&self, from: &[u8], row: &mut [f32]) {
        macro_rules! convert {
            ($kind:ty) => {
                if self.storage.is_big_endian {
                    self.each(from, row, |bytes| self.storage.voxel(f64::from(<$kind>::from_be_bytes(bytes))))
                } else {
                    self.each(from, row, |bytes| self.storage.voxel(f64::from(<$kind>::from_le_bytes(bytes))))
                }
            };
        }
        match self.storage.element {
            Element::Int8 => convert!(i8),
            Element::Uint8 => convert!(u8),
            Element::Int16 => convert!(i16),
            Element::Uint16 => convert!(u16),
            Element::Int32 => convert!(i32),
            Element::Uint32 => convert!(u32),
            Element::Float32 => convert!(f32),
            Element::Float64 => convert!(f64),
        }
    }

    /// Whether the voxels are the stored numbers, in int16 and little-endian: most are.
    #[inline(always)]
    pub(super) fn is_plain(&self) -> bool {
        let Storage { element, is_big_endian, slope, intercept } = self.storage;
        element == Element::Int16 && !is_big_endian && slope.is_none() && intercept.is_none()
    }

    /// Offset of a voxel inside the volume.
    #[inline(always)]
    pub(super) fn offset(&self, [x, y, z]: [usize; 3]) -> usize {
        let [by_y, by_z] = self.steps;
        let x = if self.is_reversed { self.lengths[0] - 1 - x } else { x };
        self.start.wrapping_add_signed(y as isize * by_y + z as isize * by_z) + x * self.step_x
    }

    /// The voxel at an offset; 0 beyond the volume.
    #[inline(always)]
    pub(super) fn plain_voxel(&self, offset: usize) -> f32 {
        let bytes = self.bytes.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0.0, |bytes| f32::from(i16::from_le_bytes(*bytes)))
    }

    /// As `plain_voxel`, for all types.
    pub(super) fn voxel(&self, offset: usize) -> f32 {
        let mut row = [0.0];
        self.convert_any(self.bytes.get(offset..).unwrap_or_default(), &mut row);
        row[0]
    }

    /// Looks at all voxels that the answer needs: whether they are equal, whether one is not finite.
    pub fn survey(&self) -> Survey {
        let [nx, ny, nz] = self.lengths;
        let may_be_infinite = self.storage.element.is_float() || self.storage.slope.is_some();
        let mut survey = Survey { is_constant: true, is_finite: true };
        let mut row = vec![0.0; nx];
        let mut first = None;
        for z in 0..nz {
            for y in 0..ny {
                self.row(y, z, &mut row);
                let expected = *first.get_or_insert(row.first().copied().unwrap_or_default());
                survey.is_constant = survey.is_constant && row.iter().all(|voxel| *voxel == expected);
                if may_be_infinite && !row.iter().fold(true, |all, voxel| all & voxel.is_finite()) {
                    return Survey { is_constant: false, is_finite: false };
                }
            }
            if !survey.is_constant && !may_be_infinite {
                break;
            }
        }
        survey
    }

    /// Calls `of` for each voxel of a row; `N` is the size of a stored number.
    #[inline(always)]
    fn each<const N: usize>(&self, from: &[u8], row: &mut [f32], of: impl Fn([u8; N]) -> f32) {
        if self.step_x == N {
            let (stored, _) = from.as_chunks::<N>();
            row.iter_mut().zip(stored).for_each(|(voxel, bytes)| *voxel = of(*bytes));
        } else {
            for (voxel, bytes) in row.iter_mut().zip(from.chunks(self.step_x)) {
                *voxel = bytes.first_chunk::<N>().map_or(0.0, |bytes| of(*bytes));
            }
        }
    }
}
