//! The clock of the services, which libfaketime lets jump, and our own clock, which does not.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where Debian's package `libfaketime` and others install the library.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// Microseconds since 1970 by our own clock.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_micros() as i64
}

/// The clock that the services use.
pub struct FakeClock {
    library: &'static str,
    file: PathBuf,
}

impl FakeClock {
    /// None where there is no libfaketime.
    pub fn find(dir: &Path) -> Option<Self> {
        let library = LIBRARIES.into_iter().find(|library| Path::new(library).exists())?;
        let clock = Self { library, file: dir.join("clock") };
        clock.jump(0);
        Some(clock)
    }

    /// The environment variables with which a process uses this clock.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", self.library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("FAKETIME_DISABLE_SHM", "1".into()),
        ]
    }

    /// Sets the clock `seconds` ahead of the real time.
    pub fn jump(&self, seconds: i64) {
        // The file is replaced as a whole, since a process may be reading it.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}s\n")).expect("write the clock");
        std::fs::rename(&new, &self.file).expect("replace the clock");
    }
}
