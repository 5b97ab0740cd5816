//! A small file system under a journal, which can be filled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Room for the deliveries that a run keeps at once; the write-ahead log alone may take 64 MiB.
const SIZE: &str = "size=256m";

/// A directory on its own file system if that can be mounted, else a plain directory.
pub struct Disk {
    dir: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Creates the directory at `dir`.
    pub fn mount(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).expect("create a directory");
        let mounted =
            run(Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(&dir));
        Self { dir, mounted }
    }

    /// Directory of the journal.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Whether it can be filled.
    pub fn is_small(&self) -> bool {
        self.mounted
    }

    /// Takes all space that is left.
    pub fn fill(&self) {
        // Written block by block to the last one: fallocate alone leaves some space.
        let ballast = format!("of={}", self.ballast().display());
        run(Command::new("dd").args(["if=/dev/zero", "bs=64k", &ballast]));
    }

    /// Gives the space back.
    pub fn free(&self) {
        let _ = fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    /// Copies the journal to `to`, where it is kept.
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
