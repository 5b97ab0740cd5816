//! A buffer whose size the sender determines.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use memmap2::MmapMut;

/// Up to this size, bytes come from the allocator. Gitea's bodies have about a tenth of it.
pub(crate) const SMALL_BYTES: usize = 64 * 1024;

/// Bytes that grow up to a size that is known beforehand. A large buffer has its own mapped pages.
/// They cost nothing until they are written to, are never copied to grow, and return to the system
/// at once. The allocator would keep the memory, and would keep even more after the first large
/// allocation.
#[derive(Debug)]
pub(crate) enum Buffer {
    Small(BytesMut),
    Large { pages: MmapMut, len: usize },
}

impl Buffer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self::Small(BytesMut::with_capacity(bytes.min(SMALL_BYTES)))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Small(bytes) => bytes.len(),
            Self::Large { len, .. } => *len,
        }
    }

    /// Appends `data`. `most` is the largest size that the buffer will ever have.
    ///
    /// # Errors
    /// The pages cannot be mapped, or the data exceeds `most`.
    pub(crate) fn extend(&mut self, data: &[u8], most: usize) -> io::Result<()> {
        let whole = self.len() + data.len();
        if let Self::Small(bytes) = self {
            if whole <= SMALL_BYTES {
                bytes.put_slice(data);
                return Ok(());
            }
            let mut pages = pages(most.max(whole))?;
            pages[..bytes.len()].copy_from_slice(bytes);
            *self = Self::Large { pages, len: bytes.len() };
        }
        if let Self::Large { pages, len } = self {
            let place = pages.get_mut(*len..whole).ok_or(io::ErrorKind::OutOfMemory)?;
            place.copy_from_slice(data);
            *len = whole;
        }
        Ok(())
    }

    pub(crate) fn freeze(self) -> Bytes {
        match self {
            Self::Small(bytes) => bytes.freeze(),
            Self::Large { pages, len } => Bytes::from_owner(pages).slice(..len),
        }
    }
}

/// Maps zeroed pages.
pub(crate) fn pages(bytes: usize) -> io::Result<MmapMut> {
    let pages = MmapMut::map_anon(bytes)?;
    // The first write to a huge page would occupy all of it. The call fails where there are no huge
    // pages.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::NoHugePage);
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_added_whether_it_is_much_or_little() {
        for whole in [0, 1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 3 * SMALL_BYTES] {
            let bytes: Vec<u8> = (0..whole).map(|n| (n % 251) as u8).collect();
            for step in [1000, SMALL_BYTES, usize::MAX] {
                let mut buffer = Buffer::with_capacity(16);
                for piece in bytes.chunks(step) {
                    buffer.extend(piece, whole).expect("room");
                }
                assert_eq!(buffer.len(), whole, "{step}");
                assert_eq!(matches!(buffer, Buffer::Large { .. }), whole > SMALL_BYTES);
                assert_eq!(buffer.freeze(), bytes);
            }
        }
    }

    #[test]
    fn more_than_was_told_is_an_error_and_not_a_panic() {
        let mut buffer = Buffer::with_capacity(0);
        buffer.extend(&[1; SMALL_BYTES], SMALL_BYTES + 4096).expect("room");
        buffer.extend(&[2; 4096], SMALL_BYTES + 4096).expect("room");
        assert!(buffer.extend(&[3; 4096], SMALL_BYTES + 4096).is_err());
        assert_eq!(buffer.len(), SMALL_BYTES + 4096);
    }
}
