//! A text, compressed with LZ4: a third of the bytes to fsync, for a few microseconds.

use bytes::Bytes;

use crate::large::buffer::{self, SMALL_BYTES};

/// A compressed text.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The text's length (32 bit, little endian), then an LZ4 block.
    pub(super) lz4: Bytes,
    /// Length of the text, in bytes.
    pub(super) text_bytes: usize,
}

impl Packed {
    pub(crate) fn new(text: &[u8]) -> Self {
        let large = if text.len() > SMALL_BYTES { packed_in_pages(text) } else { None };
        let lz4 = large.unwrap_or_else(|| lz4_flex::compress_prepend_size(text).into());
        Self { lz4, text_bytes: text.len() }
    }
}

/// A large text, as `compress_prepend_size` does it: room for the worst case costs only what is
/// written of it.
fn packed_in_pages(text: &[u8]) -> Option<Bytes> {
    let length = u32::try_from(text.len()).ok()?.to_le_bytes();
    let most = length.len() + lz4_flex::block::get_maximum_output_size(text.len());
    let mut pages = buffer::pages(most).ok()?;
    let (prefix, block) = pages.split_at_mut(length.len());
    prefix.copy_from_slice(&length);
    let bytes = length.len() + lz4_flex::block::compress_into(text, block).ok()?;
    Some(Bytes::from_owner(pages).slice(..bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_any_size_unpack_to_what_they_were() {
        for bytes in
            [0, 1, 5_000, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 3, 5 * SMALL_BYTES]
        {
            let text: Vec<u8> = (0..bytes).map(|n| (n * n / 7) as u8).collect();
            let packed = Packed::new(&text);
            assert_eq!(packed.text_bytes, bytes);
            let unpacked = lz4_flex::decompress_size_prepended(&packed.lz4).expect("an LZ4 block");
            assert!(unpacked == text, "{bytes} bytes");
        }
    }
}
