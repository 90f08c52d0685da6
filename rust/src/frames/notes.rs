//! The closed list of oddities that are accepted and reported.

macro_rules! notes {
    ($($name:ident),+ $(,)?) => {
        /// An oddity that is accepted; the names are stable.
        #[allow(non_camel_case_types, missing_docs)] // the name is the documentation, and users see it as it is
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Note { $($name),+ }

        impl Note {
            /// Every note, in bit order.
            pub const ALL: &'static [Note] = &[$(Note::$name),+];

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Note::$name => stringify!($name)),+ }
            }

            /// The note of a name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|note| note.name() == name)
            }
        }
    };
}

notes! {
    no_preamble, dicm_without_preamble, dicm_inside_data, wrong_group_length, implicit_group2, no_dataset,
    ts_guessed_explicit_le, ts_guessed_explicit_be, ts_guessed_implicit_le, vr_mode_differs_from_ts,
    endianness_differs_from_ts, unknown_vr, implicit_element_in_explicit, item_delim_instead_of_seq_delim,
    seq_delim_instead_of_item_delim, un_undefined_length_explicit_inside, undefined_length_on_vr,
    stray_delimiter, tags_not_ascending, trailing_bytes, pixel_data_url, number_of_frames_empty,
    number_of_frames_zero, bad_number_of_frames, no_pixel_bytes, odd_pixel_length, excess_pixel_data,
    short_pixel_data, pixel_data_truncated, ybr422_declared_but_full, encapsulated_with_defined_length,
    native_in_encapsulated_ts, encapsulated_in_native_ts, bot_length_not_multiple_of_4,
    bot_wrapped, bot_rejected, eot_rejected, tiff_rejected, eot_and_bot, eot_length_excludes_padding,
    eot_length_exceeds_fragment, table_not_ascending, odd_fragment_length, no_sequence_delimiter,
    seq_delim_nonzero_length, bad_fragment_tag, last_fragment_truncated, trailing_empty_fragment,
    number_of_frames_unusual, number_of_frames_from_table, number_of_frames_from_length, item_with_length_and_delim,
    delimiter_inside_fragment, astray_after_fragment,
}

/// A set of [`Note`]s, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Notes(u64);

const _: () = assert!(Note::ALL.len() <= 64);

impl Notes {
    /// Adds a note.
    pub fn add(&mut self, note: Note) {
        self.0 |= 1 << note as u8;
    }

    /// Adds all notes of another set.
    pub fn join(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether the note is in the set.
    pub fn has(self, note: Note) -> bool {
        self.0 & (1 << note as u8) != 0
    }

    /// The names of its notes, in the order of the closed list.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Note::ALL.iter().filter(move |&&note| self.has(note)).map(|note| note.name())
    }

    /// The set as bits, in the order of the closed list.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The set of these bits; `None` for unknown ones.
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits >> Note::ALL.len() == 0).then_some(Self(bits))
    }
}

impl FromIterator<Note> for Notes {
    fn from_iter<I: IntoIterator<Item = Note>>(notes: I) -> Self {
        let mut set = Self::default();
        notes.into_iter().for_each(|note| set.add(note));
        set
    }
}
