//! One record of an archive, and its checksums.

use super::super::verdict::{Checked, Finding, State};

/// One record of the archive.
#[derive(Clone, Debug)]
pub struct Record {
    /// Name without the archive's root folder.
    pub name: String,
    /// Offset of the local header.
    pub(super) header: u64,
    /// Offset of the first payload byte.
    pub payload: u64,
    /// Bytes in the file; equal to `size` unless compressed.
    pub stored: u64,
    /// Bytes of the content.
    pub size: u64,
    /// CRC-32 of the content, by the central directory.
    pub crc: u32,
    /// CRC-32 of the content, by the data descriptor that follows the payload.
    pub(super) descriptor_crc: Option<u32>,
    pub(super) flags: u16,
    pub(super) method: u16,
}

impl Record {
    /// Whether it is compressed, by any method.
    pub fn compressed(&self) -> bool {
        self.method != 0
    }

    /// Whether it is compressed by DEFLATE, the only method whose content is checked.
    pub fn deflated(&self) -> bool {
        self.method == 8
    }

    /// Compares the recorded checksums with each other and with that of the payload, where it was computed.
    pub fn check_crc(&self, computed: Option<u32>) -> Checked<()> {
        let descriptor = self.descriptor_crc.unwrap_or(self.crc);
        let detail = match computed {
            None if descriptor == self.crc => return Ok(()),
            None => {
                "the central directory and the data descriptor record different CRC-32: one is damaged".into()
            }
            Some(computed) if computed == self.crc && computed == descriptor => return Ok(()),
            Some(computed) if computed == descriptor => {
                "the central directory's CRC-32 is damaged; the payload is right".into()
            }
            Some(computed) if computed == self.crc => {
                "the data descriptor's CRC-32 is damaged; the payload is right".into()
            }
            Some(computed) => format!("the payload has CRC-32 {computed:08x}, recorded is {:08x}", self.crc),
        };
        Err(Finding::of(State::BadCrc, &self.name, self.payload, detail))
    }
}
