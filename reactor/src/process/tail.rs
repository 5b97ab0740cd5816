//! The end of what a run has written.

use std::collections::VecDeque;

use super::Output;

/// Keeps the last bytes, and counts all.
#[derive(Debug)]
pub(super) struct Tail {
    kept: VecDeque<u8>,
    most: usize,
    written: u64,
}

impl Tail {
    /// Keeps at most `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { kept: VecDeque::new(), most, written: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.written += bytes.len() as u64;
        let new = &bytes[bytes.len().saturating_sub(self.most)..];
        let over = (self.kept.len() + new.len()).saturating_sub(self.most);
        self.kept.drain(..over);
        self.kept.extend(new);
    }

    pub(super) fn output(&self) -> Output {
        let truncated = self.written > self.kept.len() as u64;
        let mut bytes: Vec<u8> = self.kept.iter().copied().collect();
        if truncated {
            // The rest of a character whose beginning is not kept.
            let rest = bytes.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
            bytes.drain(..rest);
        }
        let tail = String::from_utf8_lossy(&bytes).into_owned();
        Output { tail, written: self.written, truncated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_all_is_counted() {
        for (most, pieces, tail, truncated) in [
            (4, &["ab", "cd"][..], "abcd", false),
            (4, &["ab", "cde"], "bcde", true),
            (4, &["abcdefgh"], "efgh", true),
            (4, &["abc", "defghijk", "l"], "ijkl", true),
            (0, &["ab"], "", true),
            (4, &[], "", false),
            (3, &["aé", "b"], "éb", true),
            (3, &["éab"], "ab", true),
            (5, &["🦀ab"], "ab", true),
        ] {
            let mut kept = Tail::new(most);
            pieces.iter().for_each(|piece| kept.push(piece.as_bytes()));
            let written = pieces.concat().len() as u64;
            assert_eq!(kept.output(), Output { tail: tail.into(), written, truncated });
            assert!(kept.kept.len() <= most);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let mut kept = Tail::new(10);
        kept.push(b"\x80\xffa");
        assert_eq!(kept.output().tail, "\u{fffd}\u{fffd}a");
    }
}
