//! Memory in blocks of one size, so that what is freed is always of use again and the process never
//! takes more than the blocks that it may have.

/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 512;

/// Bytes of a block that hold data.
const DATA_BYTES: usize = BLOCK_BYTES - size_of::<u32>();

/// Blocks that are allocated at once.
const CHUNK_BLOCKS: usize = 128;

/// Ends a list of blocks.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Block {
    next: u32,
    data: [u8; DATA_BYTES],
}

/// Blocks, of which some are in use. Blocks are allocated when they are first needed, and kept.
#[derive(Debug)]
pub(super) struct Blocks {
    chunks: Vec<Box<[Block]>>,
    /// The first free block. Each names the next one.
    free: u32,
    allocated: usize,
    in_use: usize,
    limit: usize,
}

/// Bytes in a list of blocks.
#[derive(Debug)]
pub(super) struct Chain {
    first: u32,
    last: u32,
    bytes: u32,
}

impl Chain {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE, bytes: 0 };

    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Blocks that hold the bytes.
    pub(super) fn blocks(&self) -> usize {
        self.bytes().div_ceil(DATA_BYTES)
    }

    /// Blocks that are needed for `more` bytes, in addition to those that it has.
    pub(super) fn needs(&self, more: usize) -> usize {
        (self.bytes() + more).div_ceil(DATA_BYTES) - self.blocks()
    }
}

impl Blocks {
    /// Not more than `limit` blocks at a time.
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.min(NONE as usize);
        let chunks = Vec::with_capacity(limit.div_ceil(CHUNK_BLOCKS));
        Self { chunks, free: NONE, allocated: 0, in_use: 0, limit }
    }

    /// Blocks that can still be taken.
    pub(super) fn left(&self) -> usize {
        self.limit - self.in_use
    }

    /// Blocks that have been allocated, free or not.
    pub(super) fn allocated(&self) -> usize {
        self.allocated
    }

    /// Appends `bytes` to `chain`. The caller has made sure that as many blocks are left as this
    /// needs.
    pub(super) fn append(&mut self, chain: &mut Chain, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = chain.bytes() % DATA_BYTES;
            // A block that is full looks like one that is empty.
            if used == 0 {
                let Some(block) = self.take() else { return };
                if chain.first == NONE {
                    chain.first = block;
                } else {
                    self.block(chain.last).next = block;
                }
                chain.last = block;
            }
            let (now, later) = bytes.split_at(bytes.len().min(DATA_BYTES - used));
            self.block(chain.last).data[used..used + now.len()].copy_from_slice(now);
            chain.bytes += now.len() as u32;
            bytes = later;
        }
    }

    /// The bytes of `chain`.
    pub(super) fn read(&self, chain: &Chain) -> Vec<u8> {
        let (mut bytes, mut at) = (Vec::with_capacity(chain.bytes()), chain.first);
        while at != NONE {
            let at_block = at as usize;
            let block = &self.chunks[at_block / CHUNK_BLOCKS][at_block % CHUNK_BLOCKS];
            bytes.extend_from_slice(&block.data[..DATA_BYTES.min(chain.bytes() - bytes.len())]);
            at = block.next;
        }
        bytes
    }

    /// Frees the blocks of `chain`.
    pub(super) fn release(&mut self, chain: &Chain) {
        if chain.first == NONE {
            return;
        }
        self.in_use -= chain.blocks();
        self.block(chain.last).next = self.free;
        self.free = chain.first;
    }

    fn take(&mut self) -> Option<u32> {
        if self.free == NONE {
            self.allocate();
        }
        let taken = self.free;
        if taken == NONE {
            return None;
        }
        self.free = std::mem::replace(&mut self.block(taken).next, NONE);
        self.in_use += 1;
        Some(taken)
    }

    fn allocate(&mut self) {
        let (first, count) = (self.allocated, CHUNK_BLOCKS.min(self.limit - self.allocated));
        if count == 0 {
            return;
        }
        let end = first + count;
        let next = |at| if at + 1 < end { at as u32 + 1 } else { NONE };
        self.chunks
            .push((first..end).map(|at| Block { next: next(at), data: [0; DATA_BYTES] }).collect());
        (self.free, self.allocated) = (first as u32, end);
    }

    fn block(&mut self, at: u32) -> &mut Block {
        &mut self.chunks[at as usize / CHUNK_BLOCKS][at as usize % CHUNK_BLOCKS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_in_parts_is_read_as_a_whole_and_its_blocks_serve_again() {
        let mut blocks = Blocks::new(300);
        for round in 0..5 {
            let (mut chains, mut expected) = (Vec::new(), Vec::new());
            for n in 0..20_u8 {
                let (mut chain, mut bytes) = (Chain::EMPTY, Vec::new());
                for part in 0..usize::from(n) {
                    let part = vec![n ^ part as u8; (part * 97 + round) % 1300];
                    assert!(chain.needs(part.len()) <= blocks.left());
                    blocks.append(&mut chain, &part);
                    bytes.extend(part);
                    if bytes.len() > 5000 {
                        break;
                    }
                }
                chains.push(chain);
                expected.push(bytes);
            }
            for (chain, bytes) in chains.iter().zip(&expected) {
                assert_eq!(&blocks.read(chain), bytes);
            }
            for chain in &chains {
                blocks.release(chain);
            }
            assert_eq!(blocks.left(), 300);
            assert!(blocks.allocated() <= 300);
        }
    }
}
