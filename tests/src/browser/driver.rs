//! A chromedriver process, and the browser that it started.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{process::signal, wait};

/// Stands in the line that chromedriver prints once it listens, before the port.
const LISTENS: &str = "started successfully on port ";

/// A chromedriver on a port that the system chose. Killed with its browser when dropped.
pub struct Driver {
    child: Child,
    port: u16,
    browser: Option<u32>,
}

impl Driver {
    /// Starts a chromedriver that keeps its files and those of the browser in `home`.
    ///
    /// # Panics
    /// If it does not listen in time.
    pub async fn start(chromedriver: &Path, home: &Path) -> Self {
        let output = home.join("chromedriver.log");
        let log = || File::options().create(true).append(true).open(&output).expect("a log");
        let child = Command::new(chromedriver)
            .arg("--port=0")
            .env("HOME", home)
            .env("TMPDIR", home)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn()
            .expect("start chromedriver");
        let mut driver = Self { child, port: 0, browser: None };
        driver.port = wait::until("chromedriver to listen", || async {
            let text = std::fs::read_to_string(&output).expect("its output");
            let (_, rest) = text.split_once(LISTENS)?;
            rest.split_once('.')?.0.parse().ok()
        })
        .await;
        driver
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Names the browser that has to end with it, by process id.
    pub fn ends_too(&mut self, browser: u32) {
        self.browser = Some(browser);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // All other processes of a browser end with its first one.
        if let Some(browser) = self.browser {
            signal(browser, "KILL");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
