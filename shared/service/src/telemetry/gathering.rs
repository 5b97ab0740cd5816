//! The writer of log lines. It is used by the thread that writes them.

use std::{
    io::{BufWriter, Result, Write},
    thread,
    time::Duration,
};

use crate::printable;

/// How long lines may gather after a write.
const GATHER: Duration = Duration::from_millis(2);

/// Writes a line at once after a quiet time. Lines that follow closely share the next write. While
/// they gather, a thread that logs need not wake the writing thread, which is most of the cost of
/// a log line.
pub(super) struct GatheringWriter<W: Write> {
    output: BufWriter<W>,
    is_json: bool,
}

impl<W: Write> GatheringWriter<W> {
    pub(super) fn new(output: W, is_json: bool) -> Self {
        Self { output: BufWriter::new(output), is_json }
    }
}

impl<W: Write> Write for GatheringWriter<W> {
    /// Called with whole lines.
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.output.write_all(&printable::log_line(bytes, self.is_json))?;
        Ok(bytes.len())
    }

    /// Called when no line waits.
    fn flush(&mut self) -> Result<()> {
        self.output.flush()?;
        wait_for_more();
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is a thread that only writes; what it waits for must not wake it"
)]
fn wait_for_more() {
    thread::sleep(GATHER);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_for_the_flush_and_then_go_out_as_one() {
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let mut writer = GatheringWriter::new(writer, false);
        for line in ["first\n", "second\n"] {
            writer.write_all(line.as_bytes()).expect("room");
        }
        writer.flush().expect("flush");
        let mut read = [0; 64];
        let bytes = std::io::Read::read(&mut reader, &mut read).expect("what was written");
        assert_eq!(&read[..bytes], b"first\nsecond\n");
    }
}
