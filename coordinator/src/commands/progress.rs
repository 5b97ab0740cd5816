//! A line on a terminal that says how far a long piece of work has come.

use std::io::{self, IsTerminal, Write};

/// Characters of the bar.
const WIDTH: usize = 30;

/// The line, on standard error. Where that is no terminal, there is none.
#[derive(Debug)]
pub(crate) struct Progress {
    text: String,
    is_shown: bool,
}

impl Progress {
    /// An empty line.
    pub(crate) fn new() -> Self {
        Self { text: String::new(), is_shown: io::stderr().is_terminal() }
    }

    /// Shows `text`.
    pub(crate) fn show(&mut self, text: String) {
        self.text = text;
        self.draw();
    }

    /// Shows how much of the work is done.
    pub(crate) fn bar(&mut self, done: usize, total: usize) {
        self.show(bar(done, total));
    }

    /// Lets `print` print lines meanwhile.
    pub(crate) fn without<T>(&mut self, print: impl FnOnce() -> T) -> T {
        self.clear();
        let printed = print();
        self.draw();
        printed
    }

    fn draw(&self) {
        self.write(&format!("\r\x1b[K{}", self.text));
    }

    fn clear(&self) {
        // Erases the line (ECMA-48, EL).
        self.write("\r\x1b[K");
    }

    fn write(&self, text: &str) {
        if self.is_shown {
            let mut stderr = io::stderr().lock();
            // What cannot be shown is no reason to stop.
            let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn bar(done: usize, total: usize) -> String {
    let filled = (WIDTH * done).checked_div(total).unwrap_or(WIDTH).min(WIDTH);
    format!("[{}{}] {done} of {total}", "#".repeat(filled), " ".repeat(WIDTH - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_filled_as_far_as_the_work_is_done() {
        for (done, total, filled, end) in
            [(0, 4, 0, "0 of 4"), (1, 4, 7, "1 of 4"), (4, 4, 30, "4 of 4"), (0, 0, 30, "0 of 0")]
        {
            let bar = bar(done, total);
            assert_eq!(bar.matches('#').count(), filled, "{bar}");
            assert!(bar.ends_with(end) && bar.len() == WIDTH + 3 + end.len(), "{bar}");
        }
    }
}
