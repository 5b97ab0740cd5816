//! Keeps a board of open issues and who has them, in a JSON file.
//!
//! ```sh
//! NATS_URL=… NATS_USER=… NATS_PASSWORD_FILE=… \
//!     cargo run -p coordinator-client --example board board.json
//! ```
//!
//! Each change holds the issue as it is then, so the last one of each issue is all that the board
//! needs: handling one twice does no harm.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use coordinator_client::{
    Received, Settings,
    change::{Change, ChangeKind},
    changes,
    event::State,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

struct Board {
    file: PathBuf,
    issues: BTreeMap<String, Value>,
}

impl Board {
    fn open(file: PathBuf) -> Result<Self> {
        let issues = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).context("read the board")?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).context("read the board"),
        };
        Ok(Self { file, issues })
    }

    fn put(&mut self, change: &Received<Change>) -> Result<()> {
        // The id stays when the repository is renamed.
        let key = format!("{}.{}", change.repository.id, change.issue.number);
        if change.kind == ChangeKind::Deleted || change.issue.state == State::Closed {
            self.issues.remove(&key);
        } else {
            self.issues.insert(
                key,
                json!({
                    "issue": change.issue_ref(),
                    "title": change.issue.title,
                    "url": change.issue.url,
                    "assignees": change.assignees,
                    "labels": change.issue.labels,
                }),
            );
        }
        write(&self.file, &serde_json::to_vec_pretty(&self.issues)?).context("write the board")
    }
}

/// Before the ack, and as a whole: whoever reads it finds the old one or the new one.
fn write(file: &Path, text: &[u8]) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut writing = fs::File::create(&new)?;
    io::Write::write_all(&mut writing, text)?;
    writing.sync_all()?;
    fs::rename(new, file)
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let file = std::env::args().nth(1).context("usage: board FILE")?;
    let board = Arc::new(Mutex::new(Board::open(file.into())?));
    let subscription = changes("board", move |change| {
        let board = Arc::clone(&board);
        async move {
            let mut board = board.lock_owned().await;
            // It waits for the disk.
            tokio::task::spawn_blocking(move || board.put(&change)).await??;
            Ok(())
        }
    });
    Ok(subscription.run(Settings::from_variables(std::env::vars())).await?)
}
