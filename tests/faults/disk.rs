//! A small file system under a journal, which can be filled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Room for the deliveries that a run keeps at once; the write-ahead log alone may take 64 MiB.
const SIZE: &str = "size=256m";

/// A directory on a file system of its own where that can be mounted, else a plain one.
pub struct Disk {
    dir: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Makes it at `dir`.
    pub fn mount(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).expect("create a directory");
        let mounted =
            run(Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(&dir));
        Self { dir, mounted }
    }

    /// Where a journal goes.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Whether it can be filled.
    pub fn is_small(&self) -> bool {
        self.mounted
    }

    /// Takes all room that is left.
    pub fn fill(&self) {
        // Block by block to the last one: fallocate alone gives up at less.
        let ballast = format!("of={}", self.ballast().display());
        run(Command::new("dd").args(["if=/dev/zero", "bs=64k", &ballast]));
    }

    /// Gives it back.
    pub fn free(&self) {
        let _ = fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    /// Copies the journal to where it stays.
    pub fn keep(&self, to: &Path) {
        run(Command::new("cp").arg("-r").arg(self.data()).arg(to));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            run(Command::new("umount").arg("-l").arg(&self.dir));
        }
    }
}

fn run(command: &mut Command) -> bool {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
