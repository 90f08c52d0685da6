//! [`Attributes`]: the attributes of a data set that a frame table keeps.

use arrayvec::ArrayString;

/// A UID (PS3.5 9.1), stored inline: one allocation per text would slow down bulk reads.
pub type Uid = ArrayString<64>;
/// A Code String (PS3.5 6.2).
pub type Code = ArrayString<16>;

/// Identity and image attributes of one SOP Instance. The default holds what each field promises where the
/// data set, or a column of the index, has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// SOP Instance UID (0008,0018), empty where absent.
    pub sop_instance_uid: Uid,
    /// Study Instance UID (0020,000D), empty where absent.
    pub study_instance_uid: Uid,
    /// Series Instance UID (0020,000E), empty where absent.
    pub series_instance_uid: Uid,
    /// Photometric Interpretation (0028,0004): a Code String, empty where absent or malformed.
    pub photometric_interpretation: Code,
    /// Rows (0028,0010), 0 where absent.
    pub rows: u32,
    /// Columns (0028,0011), 0 where absent.
    pub columns: u32,
    /// Samples per Pixel (0028,0002), 1 where absent.
    pub samples_per_pixel: u16,
    /// Bits Allocated (0028,0100), 0 where absent.
    pub bits_allocated: u16,
    /// Number of Frames (0028,0008), 1 where absent, empty or malformed.
    pub number_of_frames: u32,
}

impl Attributes {
    /// The value of each attribute that is absent.
    pub const ABSENT: Self = Self {
        sop_instance_uid: Uid::new_const(),
        study_instance_uid: Uid::new_const(),
        series_instance_uid: Uid::new_const(),
        photometric_interpretation: Code::new_const(),
        rows: 0,
        columns: 0,
        samples_per_pixel: 1,
        bits_allocated: 0,
        number_of_frames: 1,
    };
}

impl Default for Attributes {
    fn default() -> Self {
        Self::ABSENT
    }
}
