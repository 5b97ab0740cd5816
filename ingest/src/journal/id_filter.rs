//! A Bloom filter over the ids of some deliveries: says of an id that it is
//! surely not among them, or that it may be.

use uuid::Uuid;

/// Bits for each id. With these and [`PROBES`] it errs once in a hundred thousand times.
const BITS_PER_ID: usize = 24;
/// Bits that are set for an id.
const PROBES: u64 = 16;

/// Makes a step of the one before; any odd number with its bits well spread.
const STRETCH: u64 = 0xd134_2543_de82_ef95;

/// Three bytes for each id, kept in the file as they are.
#[derive(Debug)]
pub(super) struct IdFilter(Vec<u8>);

impl IdFilter {
    pub(super) fn of<'a>(ids: impl ExactSizeIterator<Item = &'a Uuid>) -> Self {
        let mut bytes = vec![0; (ids.len() * BITS_PER_ID).div_ceil(8).max(1)];
        let bits = bytes.len() * 8;
        for id in ids {
            for at in IdHash::of(id).places(bits) {
                bytes[at / 8] |= 1 << (at % 8);
            }
        }
        Self(bytes)
    }

    pub(super) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn may_hold(&self, id: IdHash) -> bool {
        id.places(self.0.len() * 8).all(|at| self.0[at / 8] & (1 << (at % 8)) != 0)
    }
}

/// What a filter needs of an id, worked out once for all filters. It must never
/// change: filters are kept in files.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdHash {
    first: u64,
    step: u64,
}

impl IdHash {
    pub(super) fn of(id: &Uuid) -> Self {
        let (high, low) = id.as_u64_pair();
        // Most ids are random, but a sender may count.
        let first = mixed(high ^ mixed(low));
        Self { first, step: mixed(first) | 1 }
    }

    fn places(self, bits: usize) -> impl Iterator<Item = usize> {
        let (mut hash, mut step) = (self.first, self.step);
        (0..PROBES).map(move |_| {
            // Steps that differ: with equal ones the places of two ids meet more often.
            hash = hash.wrapping_add(step);
            step = step.wrapping_mul(STRETCH);
            ((u128::from(hash) * bits as u128) >> 64) as usize
        })
    }
}

/// SplitMix64's finisher: each bit of the input turns half of those of the output.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_were_put_in_are_found_and_hardly_any_other() {
        for ids in [(0..8192).map(Uuid::from_u128).collect::<Vec<_>>(), vec![Uuid::new_v4(); 3]] {
            let filter = IdFilter::of(ids.iter());
            let again = IdFilter::from_bytes(filter.as_bytes().to_vec());
            assert!(ids.iter().all(|id| again.may_hold(IdHash::of(id))));
            let others = (10_000..110_000).map(Uuid::from_u128);
            let wrong = others.filter(|id| filter.may_hold(IdHash::of(id))).count();
            assert!(wrong < 10, "{wrong} of 100,000");
        }
    }

    #[test]
    fn an_empty_one_holds_nothing() {
        assert!(!IdFilter::of([].iter()).may_hold(IdHash::of(&Uuid::new_v4())));
    }
}
