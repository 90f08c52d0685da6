//! [`FrameTable`]: where every frame of one SOP Instance lies in its file.

use std::borrow::Cow;

use crate::base::closed_list::closed_list;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Fingerprint, Source};
use crate::frames::attributes::{Attributes, Uid};
use crate::frames::notes::Notes;

closed_list! {
    /// Outcome for a file that was not refused.
    pub enum Status {
        /// Every frame can be read.
        Ok = "ok",
        /// Frames from `truncated_from` on reach past the end of the file.
        Truncated = "truncated",
        /// The data set has no pixels (reports, plans, waveforms, DICOMDIR).
        NoPixels = "no_pixels",
    }
}

closed_list! {
    /// How the pixels are stored.
    pub enum Kind {
        /// Uncompressed, frame after frame (PS3.5 8.1).
        Native = "native",
        /// Fragments in Items (PS3.5 A.4).
        Encapsulated = "encapsulated",
        /// Fragments of one bit stream for all frames (PS3.5 8.2.5).
        Video = "video",
        /// No pixels.
        None = "none",
    }
}

closed_list! {
    /// How the frames were told apart.
    pub enum Method {
        /// Native pixels: by arithmetic (PS3.5 8.1).
        Native = "native",
        /// By the Extended Offset Table with its lengths (PS3.3 C.7.6.3.1.8).
        Eot = "eot",
        /// By the Extended Offset Table; its lengths are absent or wrong.
        EotOffsetsOnly = "eot_offsets_only",
        /// By the Basic Offset Table (PS3.5 A.4).
        Bot = "bot",
        /// By the tile offsets of the TIFF in the preamble.
        Tiff = "tiff",
        /// There is one frame, which all fragments belong to.
        SingleFrame = "single_frame",
        /// There are as many fragments as frames.
        OneFragmentPerFrame = "one_fragment_per_frame",
        /// A fragment that begins with a codec's start marker begins a frame.
        StartMarkers = "start_markers",
        /// A fragment that ends with a codec's end marker ends a frame.
        EndMarkers = "end_markers",
        /// Video: one stream for all frames (PS3.5 8.2.5).
        VideoStream = "video_stream",
        /// There are no pixels.
        None = "none",
    }
}

closed_list! {
    /// How far the table was checked against the file.
    pub enum Verified {
        /// Counts only.
        None = "none",
        /// First and last entry.
        Ends = "ends",
        /// Every entry.
        All = "all",
    }
}

impl Verified {
    /// The demand that leads to this.
    pub fn as_demand(self) -> Verify {
        match self {
            Self::None => Verify::None,
            Self::Ends => Verify::Ends,
            Self::All => Verify::All,
        }
    }
}

closed_list! {
    /// How far a table shall be checked against the file.
    pub enum Verify {
        /// Counts only, for measurements; such a table is not stored.
        None = "none",
        /// First and last entry; used while somebody waits for a frame.
        Ends = "ends",
        /// Every entry, against a walk over all fragments; used by an index run.
        All = "all",
    }
}

closed_list! {
    /// What the offsets count in.
    pub enum OffsetsIn {
        /// The file.
        File = "file",
        /// The inflated data set (PS3.5 A.5), counted from its first byte.
        Inflated = "inflated",
    }
}

/// Most native frames for which offsets and lengths are computed as arrays, 16 bytes each.
pub const MOST_NATIVE_ROWS: u32 = 1 << 24;

/// Where every frame of one SOP Instance lies in its file, and the attributes that reading it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameTable {
    /// Outcome.
    pub status: Status,
    /// How the pixels are stored.
    pub kind: Kind,
    /// How the frames were told apart.
    pub method: Method,
    /// How far that was checked.
    pub verified: Verified,
    /// What the offsets count in.
    pub offsets_in: OffsetsIn,
    /// First frame that is not completely in the file, for [`Status::Truncated`].
    pub truncated_from: Option<u32>,
    /// Accepted oddities.
    pub notes: Notes,
    /// As declared, or as guessed (a note says so).
    pub transfer_syntax_uid: Uid,
    /// Attributes of the data set; `number_of_frames` as declared.
    pub image: Attributes,
    /// Offset of the pixel element's tag.
    pub pixel_data_pos: Option<u64>,
    /// State of the file that this table describes.
    pub fingerprint: Fingerprint,
    /// Where the frames lie.
    pub layout: Layout,
}

/// Where the frames lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Nowhere.
    Empty,
    /// One after another without gaps, bit by bit.
    Native(Native),
    /// In fragments.
    Items(Items),
}

/// Native frames: frame i begins `i * frame_bits` bits after `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Native {
    /// Offset of the first pixel byte.
    pub base: u64,
    /// Bits of one frame, above zero; not always whole bytes (Bits Allocated 1).
    pub frame_bits: u64,
    /// Number of frames.
    pub frames: u32,
}

/// Fragments in frame order. `offsets` and `lengths` have one entry a fragment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items {
    /// Absolute offset of each payload.
    pub offsets: Vec<u64>,
    /// Length of each payload in bytes.
    pub lengths: Vec<u64>,
    /// First fragment of each frame, and the number of fragments as last entry: `frames + 1` entries, from 0,
    /// ascending. `None`: each fragment is a frame.
    pub frame_first: Option<Vec<u32>>,
}

/// A [`Layout`] with borrowed arrays.
#[derive(Clone, Copy)]
pub enum LayoutView<'a> {
    /// See [`Layout::Empty`].
    Empty,
    /// See [`Layout::Native`].
    Native(Native),
    /// See [`Layout::Items`].
    Items(ItemsView<'a>),
}

/// [`Items`] with borrowed arrays.
#[derive(Clone, Copy)]
pub struct ItemsView<'a> {
    /// See [`Items::offsets`].
    pub offsets: &'a [u64],
    /// See [`Items::lengths`].
    pub lengths: &'a [u64],
    /// See [`Items::frame_first`].
    pub frame_first: Option<&'a [u32]>,
}

impl ItemsView<'_> {
    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.frame_first.map_or(self.offsets.len(), |first| first.len().saturating_sub(1))
    }
}

impl Layout {
    /// The same, borrowed.
    pub fn view(&self) -> LayoutView<'_> {
        match self {
            Self::Empty => LayoutView::Empty,
            Self::Native(native) => LayoutView::Native(*native),
            Self::Items(items) => LayoutView::Items(items.view()),
        }
    }
}

impl Items {
    /// The same, borrowed.
    pub fn view(&self) -> ItemsView<'_> {
        ItemsView { offsets: &self.offsets, lengths: &self.lengths, frame_first: self.frame_first.as_deref() }
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.view().frames()
    }

    /// The fragments of a frame, as indices.
    fn fragments_of(&self, frame: usize) -> std::ops::Range<usize> {
        match &self.frame_first {
            None if frame < self.offsets.len() => frame..frame + 1,
            None => 0..0,
            Some(first) => match (first.get(frame), first.get(frame + 1)) {
                (Some(&start), Some(&end)) => start as usize..end as usize,
                _ => 0..0,
            },
        }
    }
}

impl Native {
    /// Bytes of a frame, half-open and clipped to `size`: with frames of odd bits neighbours share a byte.
    pub fn range(&self, frame: u64, size: u64) -> (u64, u64) {
        let bit = self.frame_bits.saturating_mul(frame);
        let start = self.base.saturating_add(bit / 8);
        let end = self.base.saturating_add(bit.saturating_add(self.frame_bits).div_ceil(8));
        (start.min(size), end.min(size))
    }

    /// Bit of the first byte at which a frame begins, counted from the least significant.
    pub fn bit_offset(&self, frame: u64) -> u8 {
        // Only the lowest bits count, so that an overflow does no harm.
        (self.frame_bits.wrapping_mul(frame) % 8) as u8
    }
}

impl Default for FrameTable {
    /// The table of a data set without pixels.
    fn default() -> Self {
        Self {
            status: Status::NoPixels,
            kind: Kind::None,
            method: Method::None,
            verified: Verified::None,
            offsets_in: OffsetsIn::File,
            truncated_from: None,
            notes: Notes::default(),
            transfer_syntax_uid: Uid::new(),
            image: Attributes::default(),
            pixel_data_pos: None,
            fingerprint: Fingerprint::default(),
            layout: Layout::Empty,
        }
    }
}

impl FrameTable {
    /// Number of frames that can be addressed: Number of Frames, but 1 for a video stream.
    pub fn frames(&self) -> usize {
        match &self.layout {
            Layout::Empty => 0,
            Layout::Native(native) => native.frames as usize,
            Layout::Items(items) => items.frames(),
        }
    }

    /// Number of fragments; native frames count as one each.
    pub fn fragments(&self) -> usize {
        match &self.layout {
            Layout::Items(items) => items.offsets.len(),
            _ => self.frames(),
        }
    }

    /// Bytes of all payloads together; 0 for native frames, whose layout says it.
    pub fn fragments_length(&self) -> u64 {
        match &self.layout {
            Layout::Items(items) => items.lengths.iter().fold(0, |sum, &length| sum.saturating_add(length)),
            _ => 0,
        }
    }

    /// The largest end that a range may have: the size of the file, or no limit for inflated offsets.
    pub fn limit(&self) -> u64 {
        match self.offsets_in {
            OffsetsIn::File => self.fingerprint.size,
            OffsetsIn::Inflated => u64::MAX,
        }
    }

    /// Payload ranges of a frame, half-open `[start, end)`; none for a frame that does not exist.
    pub fn ranges(&self, frame: usize) -> impl Iterator<Item = (u64, u64)> {
        let limit = self.limit();
        let native = match &self.layout {
            Layout::Native(native) if frame < native.frames as usize => {
                Some(native.range(frame as u64, limit))
            }
            _ => None,
        };
        let items = match &self.layout {
            Layout::Items(items) => Some(items),
            _ => None,
        };
        let fragments = items.into_iter().flat_map(move |items| {
            items.fragments_of(frame).filter_map(|index| {
                let start = *items.offsets.get(index)?;
                Some((start, start.saturating_add(*items.lengths.get(index)?)))
            })
        });
        native.into_iter().chain(fragments)
    }

    /// Bit of the first byte at which a native frame begins, counted from the least significant.
    pub fn bit_offset(&self, frame: usize) -> u8 {
        match &self.layout {
            Layout::Native(native) => native.bit_offset(frame as u64),
            _ => 0,
        }
    }

    /// Bits of a native frame.
    pub fn frame_bits(&self) -> Option<u64> {
        match &self.layout {
            Layout::Native(native) => Some(native.frame_bits),
            _ => None,
        }
    }

    /// Whether a range may hold item headers between payloads: a Basic Offset Table does not say how many
    /// fragments a frame has, and this one was not checked against a walk.
    pub fn holds_spans(&self) -> bool {
        self.method == Method::Bot && self.is_unwalked()
    }

    /// Whether the fragments come from a table in the file that was not checked against a walk.
    pub fn is_unwalked(&self) -> bool {
        matches!(self.layout, Layout::Items(_)) && self.verified != Verified::All
    }

    /// Offsets and lengths of all fragments, and the first fragment of each frame, as arrays.
    ///
    /// # Errors
    /// `limit_exceeded` for more native frames than [`MOST_NATIVE_ROWS`]; [`Self::ranges`] has no limit.
    pub fn to_items(&self) -> Result<Cow<'_, Items>> {
        match &self.layout {
            Layout::Items(items) => Ok(Cow::Borrowed(items)),
            Layout::Empty => Ok(Cow::Owned(Items::default())),
            Layout::Native(native) if native.frames > MOST_NATIVE_ROWS => {
                let detail = format!("{} native frames: ask for the ranges of single frames", native.frames);
                Err(Error::new(ErrorKind::LimitExceeded, detail))
            }
            Layout::Native(native) => {
                let ranges = (0..u64::from(native.frames)).map(|frame| native.range(frame, self.limit()));
                let (offsets, lengths) = ranges.map(|(start, end)| (start, end - start)).unzip();
                Ok(Cow::Owned(Items { offsets, lengths, frame_first: None }))
            }
        }
    }

    /// Sets [`Status::Ok`], or [`Status::Truncated`] from the frame that is cut.
    pub fn set_status(&mut self, cut: Option<u32>) {
        self.truncated_from = cut;
        self.status = if cut.is_some() { Status::Truncated } else { Status::Ok };
    }

    /// Refuses a frame that does not exist or is not completely in the file.
    pub fn check_readable(&self, frame: usize) -> Result<()> {
        if frame >= self.frames() {
            let detail = format!("frame {frame} (from 0) of {}", self.frames());
            return Err(Error::new(ErrorKind::InvalidArgument, detail));
        }
        match self.truncated_from {
            Some(from) if frame >= from as usize => {
                let whole = format!("whole frames: {from} of {}", self.frames());
                let detail = format!("frame {frame} (from 0): the file is cut off, {whole}");
                Err(Error::new(ErrorKind::TruncatedFrame, detail))
            }
            _ => Ok(()),
        }
    }

    /// Whether both describe the same bytes, whatever the state of their files and the depth of the checks.
    /// Tables from memory have no UIDs.
    pub fn is_of_same_content(&self, other: &Self) -> bool {
        let (one, two) = (&self.image.sop_instance_uid, &other.image.sop_instance_uid);
        let is_same_instance = one == two || one.is_empty() || two.is_empty();
        is_same_instance
            && (self.kind, self.offsets_in, self.truncated_from)
                == (other.kind, other.offsets_in, other.truncated_from)
            && self.transfer_syntax_uid == other.transfer_syntax_uid
            && self.layout == other.layout
    }

    /// Refuses a source that is not the file that this table describes.
    pub fn check_describes(&self, source: &dyn Source) -> Result<()> {
        self.check_state(source)?;
        source.check_unchanged()
    }

    /// As [`Self::check_describes`], where the source was opened a moment ago or is asked again after the read.
    pub fn check_state(&self, source: &dyn Source) -> Result<()> {
        let (now, then) = (source.fingerprint(), self.fingerprint);
        if now.agrees_with(&then) {
            return Ok(());
        }
        let detail = format!(
            "the table describes {} bytes of another time, the file has {}: read its table again",
            then.size, now.size
        );
        Err(Error::new(ErrorKind::ChangedDuringRead, detail))
    }
}
