//! The JSON text while it grows.

use crate::base::error::{Error, ErrorKind, Result};
use crate::dicom::element::Tag;

/// JSON text and its limit. Lists are written with a comma behind each member; [`Output::close`] takes the last.
pub struct Output {
    /// The text.
    pub text: Vec<u8>,
    /// Most bytes that it may have.
    pub most_bytes: usize,
}

impl Output {
    /// Appends text.
    pub fn push(&mut self, text: &[u8]) {
        self.text.extend_from_slice(text);
    }

    /// Appends the bracket of a list or an object in place of the last comma.
    pub fn close(&mut self, bracket: u8) {
        if self.text.last() == Some(&b',') {
            self.text.pop();
        }
        self.text.push(bracket);
    }

    /// Sorts the attributes at the end of the text, each of which begins at its place in `starts` and ends with
    /// a comma. One that stands twice with the same value is one.
    ///
    /// # Errors
    /// `misplaced_element` for one with two values: some readers take the first, some the last.
    pub fn sort(&mut self, starts: &[(Tag, usize)]) -> Result<()> {
        let Some(&(_, start)) = starts.first() else { return Ok(()) };
        let ends = starts.iter().skip(1).map(|&(_, start)| start).chain([self.text.len()]);
        let mut attributes: Vec<(Tag, &[u8])> = starts
            .iter()
            .zip(ends)
            .map(|(&(tag, start), end)| (tag, self.text.get(start..end).unwrap_or_default()))
            .collect();
        attributes.sort_by_key(|&(tag, _)| tag);
        attributes.dedup();
        let twice = attributes.windows(2).find(|pair| matches!(pair, [(one, _), (other, _)] if one == other));
        if let Some([(tag, _), ..]) = twice {
            let detail = format!("{tag} stands twice, with different values (PS3.5 7.1)");
            return Err(Error::new(ErrorKind::MisplacedElement, detail));
        }
        let sorted: Vec<u8> = attributes.iter().flat_map(|(_, text)| text.iter().copied()).collect();
        self.text.truncate(start);
        self.push(&sorted);
        Ok(())
    }

    /// Refuses text beyond the limit; `position` is where the file was read.
    pub fn check(&self, position: u64) -> Result<()> {
        self.check_room(0, position)
    }

    /// Refuses `bytes` more than there are, where they would go beyond the limit.
    pub fn check_room(&self, bytes: usize, position: u64) -> Result<()> {
        if self.text.len().saturating_add(bytes) <= self.most_bytes {
            return Ok(());
        }
        let detail = "the JSON text of the attributes would be longer than its limit";
        Err(Error::at(ErrorKind::LimitExceeded, position, detail))
    }
}
