//! Compresses a text with LZ4. This reduces the bytes to fsync to a third, for a few microseconds.

use std::cell::RefCell;

use bytes::Bytes;
use lz4_flex::block::{
    CompressError, CompressTable, DecompressError, compress_into, compress_into_with_table,
    decompress, get_maximum_output_size,
};
use thiserror::Error;

use crate::large::buffer::{SMALL_BYTES, pages};

/// A compressed text.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The text's length (32 bit, little endian), then an LZ4 block.
    pub(crate) lz4: Bytes,
    /// Length of the text, in bytes.
    pub(super) text_bytes: usize,
}

thread_local! {
    /// Compression table and output buffer for small texts, allocated once per thread.
    static PACKING: RefCell<(CompressTable, Vec<u8>)> = RefCell::default();
}

impl Packed {
    pub(crate) fn new(text: &[u8]) -> Self {
        let packed = if text.len() <= SMALL_BYTES {
            PACKING.with_borrow_mut(|(table, room)| packed_in_room(room, table, text))
        } else {
            packed_in_pages(text)
        };
        let lz4 = packed.unwrap_or_else(|| lz4_flex::compress_prepend_size(text).into());
        Self { lz4, text_bytes: text.len() }
    }
}

/// Compresses a small text. The result takes no more memory than its compressed size.
fn packed_in_room(room: &mut Vec<u8>, table: &mut CompressTable, text: &[u8]) -> Option<Bytes> {
    let most = most_packed(text);
    if room.len() < most {
        room.resize(most, 0);
    }
    let bytes = pack(text, room, |text, block| compress_into_with_table(text, block, table))?;
    Some(Bytes::copy_from_slice(&room[..bytes]))
}

/// Compresses a large text. The buffer has worst-case size, but only the pages written to cost
/// memory.
fn packed_in_pages(text: &[u8]) -> Option<Bytes> {
    let mut pages = pages(most_packed(text)).ok()?;
    let bytes = pack(text, &mut pages, compress_into)?;
    Some(Bytes::from_owner(pages).slice(..bytes))
}

fn most_packed(text: &[u8]) -> usize {
    size_of::<u32>() + get_maximum_output_size(text.len())
}

/// Writes a text's length and its compressed block, in the format of `compress_prepend_size`.
/// Returns the number of bytes written.
fn pack(
    text: &[u8],
    room: &mut [u8],
    compress: impl FnOnce(&[u8], &mut [u8]) -> Result<usize, CompressError>,
) -> Option<usize> {
    let length = u32::try_from(text.len()).ok()?.to_le_bytes();
    let (prefix, block) = room.split_at_mut(length.len());
    prefix.copy_from_slice(&length);
    Some(length.len() + compress(text, block).ok()?)
}

/// The text of a packed one. Its length comes from disk, where it may be damaged. So it is believed
/// only as far as LZ4 can go: a byte of a block stands for at most 255 of the text
/// (LZ4 Block Format, "Linear small-integer code").
pub(crate) fn unpack(packed: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let (prefix, block) = packed.split_first_chunk().ok_or(UnpackError::NoLength)?;
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > block.len().saturating_mul(255) {
        return Err(UnpackError::Length(length));
    }
    let text = decompress(block, length)?;
    if text.len() == length { Ok(text) } else { Err(UnpackError::Length(length)) }
}

/// Why a packed text cannot be read.
#[derive(Debug, Error)]
pub(crate) enum UnpackError {
    #[error("it has no length")]
    NoLength,
    #[error("it cannot have {0} bytes")]
    Length(usize),
    #[error("unpack the block")]
    Block(#[from] DecompressError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_length_takes_no_memory() {
        for packed in [
            &[][..],
            &[1, 0, 0],
            &[255, 255, 255, 255],
            &[255, 255, 255, 255, 0x10, b'a'],
            // A block of one byte that says that it has two.
            &[2, 0, 0, 0, 0x10, b'a'],
            &[0, 0, 0, 0, 0x10, b'a'],
        ] {
            assert!(unpack(packed).is_err(), "{packed:?}");
        }
        assert_eq!(unpack(&[1, 0, 0, 0, 0x10, b'a']).expect("a block"), b"a");
    }

    #[test]
    fn texts_of_any_size_unpack_to_what_they_were() {
        for bytes in
            [0, 1, 5_000, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 3, 5 * SMALL_BYTES]
        {
            let text: Vec<u8> = (0..bytes).map(|n| (n * n / 7) as u8).collect();
            let packed = Packed::new(&text);
            assert_eq!(packed.text_bytes, bytes);
            let unpacked = unpack(&packed.lz4).expect("an LZ4 block");
            assert!(unpacked == text, "{bytes} bytes");
        }
    }
}
