//! How stored numbers become those of the output: scaled, normalised and cast, row by row.
//!
//! Each step rounds as numpy does with arrays of that type, so that fused and separate steps give equal bits.

use crate::base::error::{Error, ErrorKind, Result};

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// 8 bits, unsigned.
    U8,
    /// 8 bits.
    I8,
    /// 16 bits, unsigned.
    U16,
    /// 16 bits.
    I16,
    /// 32 bits, unsigned.
    U32,
    /// 32 bits.
    I32,
    /// 64 bits, unsigned.
    U64,
    /// 64 bits.
    I64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

impl Number {
    /// The type of a name of numpy's.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "uint8" => Self::U8,
            "int8" => Self::I8,
            "uint16" => Self::U16,
            "int16" => Self::I16,
            "uint32" => Self::U32,
            "int32" => Self::I32,
            "uint64" => Self::U64,
            "int64" => Self::I64,
            "float32" => Self::F32,
            "float64" => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

/// From the stored number to the physical one: slope * stored + inter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// The stored number itself.
    Identity,
    /// In 32 bits.
    Single(f32, f32),
    /// In 64 bits.
    Double(f64, f64),
}

/// Clips to `low..=high`, then subtracts `mean` and divides by `deviation`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalize {
    /// Least value.
    pub low: f32,
    /// Greatest value.
    pub high: f32,
    /// Subtracted.
    pub mean: f32,
    /// Divided by.
    pub deviation: f32,
}

/// The steps from a stored number to one of the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    from: Number,
    to: Number,
    scale: Scale,
    normalize: Option<Normalize>,
}

impl Recipe {
    /// Steps from one type to another.
    ///
    /// # Errors
    /// `invalid_argument` where numbers could change silently: the output is the stored type, a wider
    /// integer without scaling, or `float32`.
    pub fn new(from: Number, to: Number, scale: Scale, normalize: Option<Normalize>) -> Result<Self> {
        use Number::{F32, I8, I16, I32, I64, U8, U16, U32};
        let is_wider =
            matches!((from, to), (U8 | I8, I16 | I32 | I64) | (I16 | U16, I32 | I64) | (I32 | U32, I64));
        let is_bare = scale == Scale::Identity && normalize.is_none();
        if to == F32 || (is_bare && (from == to || is_wider)) {
            return Ok(Self { from, to, scale, normalize });
        }
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("numbers cannot go from {from:?} to {to:?} by {scale:?} without a loss"),
        ))
    }

    /// No step: cells of a type as they are.
    pub fn copy(of: Number) -> Self {
        Self { from: of, to: of, scale: Scale::Identity, normalize: None }
    }

    /// Whether bytes are copied as they are.
    pub fn is_copy(&self) -> bool {
        self.from == self.to && self.scale == Scale::Identity && self.normalize.is_none()
    }

    /// The stored type.
    pub fn from(&self) -> Number {
        self.from
    }

    /// The type of the output.
    pub fn to(&self) -> Number {
        self.to
    }

    /// Converts one number, given and returned as its first bytes.
    pub fn apply(&self, cell: [u8; 8]) -> [u8; 8] {
        let mut out = [0; 8];
        // SAFETY: both have room for one number of any type.
        unsafe { self.row(cell.as_ptr(), out.as_mut_ptr(), 1) };
        out
    }

    /// Converts `count` numbers that lie one after the other; nothing needs to be aligned.
    ///
    /// # Safety
    ///
    /// `from` and `to` have `count` numbers of the two types and do not overlap.
    pub unsafe fn row(&self, from: *const u8, to: *mut u8, count: usize) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: by contract; the processor has AVX2.
            return unsafe { self.row_avx2(from, to, count) };
        }
        // SAFETY: by contract.
        unsafe { self.row_inline(from, to, count) };
    }

    /// # Safety
    ///
    /// As [`Recipe::row`], and the processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn row_avx2(&self, from: *const u8, to: *mut u8, count: usize) {
        // SAFETY: by contract.
        unsafe { self.row_inline(from, to, count) };
    }

    /// # Safety
    ///
    /// As [`Recipe::row`].
    #[inline(always)]
    unsafe fn row_inline(&self, from: *const u8, to: *mut u8, count: usize) {
        // SAFETY: by contract; the types of the pointers are those of the recipe.
        unsafe {
            match (self.from, self.to) {
                (a, b) if a == b && self.is_copy() => {
                    std::ptr::copy_nonoverlapping(from, to, count * a.bytes());
                }
                (Number::U8, Number::F32) => self.floats::<u8>(from, to, count),
                (Number::I8, Number::F32) => self.floats::<i8>(from, to, count),
                (Number::U16, Number::F32) => self.floats::<u16>(from, to, count),
                (Number::I16, Number::F32) => self.floats::<i16>(from, to, count),
                (Number::U32, Number::F32) => self.floats::<u32>(from, to, count),
                (Number::I32, Number::F32) => self.floats::<i32>(from, to, count),
                (Number::U64, Number::F32) => self.floats::<u64>(from, to, count),
                (Number::I64, Number::F32) => self.floats::<i64>(from, to, count),
                (Number::F32, Number::F32) => self.floats::<f32>(from, to, count),
                (Number::F64, Number::F32) => self.floats::<f64>(from, to, count),
                (Number::U8, Number::I16) => widen::<u8, i16>(from, to, count),
                (Number::U8, Number::I32) => widen::<u8, i32>(from, to, count),
                (Number::U8, Number::I64) => widen::<u8, i64>(from, to, count),
                (Number::I8, Number::I16) => widen::<i8, i16>(from, to, count),
                (Number::I8, Number::I32) => widen::<i8, i32>(from, to, count),
                (Number::I8, Number::I64) => widen::<i8, i64>(from, to, count),
                (Number::U16, Number::I32) => widen::<u16, i32>(from, to, count),
                (Number::U16, Number::I64) => widen::<u16, i64>(from, to, count),
                (Number::I16, Number::I32) => widen::<i16, i32>(from, to, count),
                (Number::I16, Number::I64) => widen::<i16, i64>(from, to, count),
                (Number::U32, Number::I64) => widen::<u32, i64>(from, to, count),
                (Number::I32, Number::I64) => widen::<i32, i64>(from, to, count),
                _ => {} // `new` makes no other pair
            }
        }
    }

    /// # Safety
    ///
    /// As [`Recipe::row`], from S to `f32`.
    #[inline(always)]
    unsafe fn floats<S: Stored>(&self, from: *const u8, to: *mut u8, count: usize) {
        let (from, to) = (from.cast::<S>(), to.cast::<f32>());
        match self.scale {
            // SAFETY: by contract. Written out: each loop is its own for the vectoriser.
            Scale::Identity => unsafe {
                for k in 0..count {
                    to.add(k).write_unaligned(from.add(k).read_unaligned().single());
                }
            },
            // SAFETY: by contract.
            Scale::Single(slope, inter) => unsafe {
                for k in 0..count {
                    to.add(k).write_unaligned(from.add(k).read_unaligned().single() * slope + inter);
                }
            },
            // SAFETY: by contract.
            Scale::Double(slope, inter) => unsafe {
                for k in 0..count {
                    let value = from.add(k).read_unaligned().double() * slope + inter;
                    to.add(k).write_unaligned(value as f32);
                }
            },
        }
        let Some(Normalize { low, high, mean, deviation }) = self.normalize else { return };
        for k in 0..count {
            // SAFETY: by contract; NaN stays NaN, as numpy's clip leaves it.
            unsafe {
                let value = to.add(k).read_unaligned();
                let value = if value < low { low } else { value };
                let value = if value > high { high } else { value };
                to.add(k).write_unaligned((value - mean) / deviation);
            }
        }
    }
}

/// A stored type, as a float.
trait Stored: Copy {
    fn single(self) -> f32;
    fn double(self) -> f64;
}

macro_rules! stored {
    ($($kind:ty),*) => {$(
        impl Stored for $kind {
            #[inline(always)]
            fn single(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn double(self) -> f64 {
                self as f64
            }
        }
    )*};
}
stored!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// # Safety
///
/// As [`Recipe::row`], from A to B.
#[inline(always)]
unsafe fn widen<A: Copy + Into<B>, B>(from: *const u8, to: *mut u8, count: usize) {
    let (from, to) = (from.cast::<A>(), to.cast::<B>());
    for k in 0..count {
        // SAFETY: by contract.
        unsafe { to.add(k).write_unaligned(from.add(k).read_unaligned().into()) };
    }
}
