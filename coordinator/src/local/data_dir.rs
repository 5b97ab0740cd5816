//! The directory that holds everything of one Coordinator on one machine:
//! journal, nats-server's store, the secrets, and the addresses of the
//! Coordinator while it runs.

use std::{
    fs::{File, TryLockError},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use service::{private, settings::SettingsError};

/// Default data directory.
pub(crate) const DEFAULT_DATA_DIR: &str = "data";

const LOCK_FILE: &str = "coordinator.lock";
/// Locked while an instance runs, too. Commands try this lock: were it the other one, a command
/// could hinder a start.
const RUNNING_FILE: &str = "coordinator.running";
const SECRET_FILE: &str = "webhook-secret";
const NATS_PASSWORD_FILE: &str = "nats-password";
const INSTANCE_FILE: &str = "coordinator.json";
const SECRET_BYTES: usize = 32;
/// How the names of all that is in the directory begin.
pub(crate) const FILES: [&str; 4] = ["coordinator.", "journal.", "nats", "webhook-secret"];

/// A data directory that is locked for this process as long as this value lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    outcome: private::Outcome,
    _locks: [File; 2],
}

impl DataDir {
    /// Creates the directory if it is not there, makes it private, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        private::make_directory(path).map_err(|error| unusable(path, "made", &error))?;
        // An absolute path: nats-server has the same working directory, but its configuration
        // stays on disk after this process.
        let path = path
            .canonicalize()
            .with_context(|| format!("open the data directory {}", path.display()))?;
        let outcome = private::put_right(&path, &FILES)
            .map_err(|problem| SettingsError(vec![format!("DATA_DIR {problem}")]))?;
        let open =
            |name| private::open(&path.join(name)).map_err(|error| unusable(&path, "used", &error));
        let (lock, running) = (open(LOCK_FILE)?, open(RUNNING_FILE)?);
        let failed = |name| format!("lock {}", path.join(name).display());
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "the data directory {} is in use by another instance; stop that one, or set DATA_DIR (--data-dir)",
                path.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| failed(LOCK_FILE));
            }
        }
        running.lock().with_context(|| failed(RUNNING_FILE))?;
        Ok(Self { path, outcome, _locks: [lock, running] })
    }

    /// What was not private when the directory was opened.
    pub(crate) fn outcome(&self) -> &private::Outcome {
        &self.outcome
    }

    /// Absolute path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file with the webhook's secret, which the first call generates.
    pub(crate) fn secret_file(&self) -> Result<PathBuf> {
        made_once(secret_file(&self.path))
    }

    /// The file with the password at the nats-server of this directory, which the first call
    /// generates.
    pub(crate) fn nats_password_file(&self) -> Result<PathBuf> {
        made_once(self.path.join(NATS_PASSWORD_FILE))
    }
}

fn unusable(path: &Path, verb: &str, error: &io::Error) -> SettingsError {
    SettingsError(vec![format!("DATA_DIR is {}, which cannot be {verb} ({error})", path.display())])
}

/// Where the secret of a data directory is kept.
pub(crate) fn secret_file(data_dir: &Path) -> PathBuf {
    data_dir.join(SECRET_FILE)
}

/// The file of a secret. It is generated if it is not there: the lock keeps other processes away.
fn made_once(file: PathBuf) -> Result<PathBuf> {
    if !file.try_exists().with_context(|| format!("look for {}", file.display()))? {
        generate(&file).with_context(|| format!("create {}", file.display()))?;
    }
    Ok(file)
}

fn generate(file: &Path) -> io::Result<()> {
    let mut secret = [0_u8; SECRET_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    private::write_synced(file, format!("{}\n", hex::encode(secret)).as_bytes())
}

/// Addresses of a running Coordinator, and where its secrets are, for the commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// URL that Gitea has to post to.
    pub(crate) webhook_url: String,
    /// Health and metrics.
    pub(crate) operator_url: String,
    /// NATS, without user and password.
    pub(crate) nats_url: String,
    /// User and password at the nats-server that the Coordinator has started. None for another.
    #[serde(default)]
    pub(crate) nats_login: Option<NatsLogin>,
    /// The webhook's secret, unless it was given in the environment.
    pub(crate) secret_file: Option<PathBuf>,
    /// URL of Gitea.
    #[serde(default)]
    pub(crate) gitea_url: Option<String>,
    /// Process id of the Coordinator.
    pub(crate) pid: u32,
}

impl Instance {
    /// What the instance running in `data_dir` wrote, if there is one.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>> {
        let file = data_dir.join(INSTANCE_FILE);
        match std::fs::read(&file) {
            Ok(json) => Ok(Some(
                serde_json::from_slice(&json)
                    .with_context(|| format!("read {}", file.display()))?,
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Whether an instance runs in `data_dir`. The file that it wrote outlives a `kill -9`, and
    /// anybody may listen on its ports then.
    pub(crate) fn is_running(data_dir: &Path) -> Result<bool> {
        let file = data_dir.join(RUNNING_FILE);
        let failed = || format!("look at the lock {}", file.display());
        let lock = match File::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            lock => lock.with_context(failed)?,
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error).with_context(failed),
        }
    }

    /// Writes the file that the commands read.
    pub(crate) async fn write(&self, data_dir: &Path) -> Result<()> {
        let file = data_dir.join(INSTANCE_FILE);
        let shown = file.display().to_string();
        let json = serde_json::to_vec_pretty(self)?;
        let written = tokio::task::spawn_blocking(move || private::write(&file, &json)).await;
        written
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .with_context(|| format!("write {shown}"))
    }

    /// Removes the file, if it was written.
    pub(crate) fn remove(data_dir: &Path) -> Result<()> {
        let file = data_dir.join(INSTANCE_FILE);
        private::remove_if_there(&file).with_context(|| format!("remove {}", file.display()))
    }
}

/// User and password at the nats-server of a data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NatsLogin {
    /// User.
    pub(crate) user: String,
    /// File that holds the password.
    pub(crate) password_file: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("metadata").permissions().mode() & 0o777
    }

    #[test]
    fn a_directory_is_private_and_belongs_to_one_instance() {
        let parent = tempfile::tempdir().expect("directory");
        let path = parent.path().join("a").join("data");
        let data = DataDir::open(&path).expect("first");
        assert_eq!(mode(&path), 0o700);
        let error = DataDir::open(&path).expect_err("second");
        assert!(error.to_string().contains("in use by another instance"), "{error}");
        drop(data);
        DataDir::open(&path).expect("after the first");
    }

    #[test]
    fn secrets_are_made_once_and_only_their_owner_reads_them() {
        let parent = tempfile::tempdir().expect("directory");
        let data = DataDir::open(parent.path()).expect("open");
        // Left by a process that died before the rename.
        std::fs::write(parent.path().join("webhook-secret.new"), "half").expect("write");
        for of in [DataDir::secret_file, DataDir::nats_password_file] {
            let file = of(&data).expect("secret");
            let secret = std::fs::read_to_string(&file).expect("read");
            assert_eq!((mode(&file), secret.trim_end().len()), (0o600, 64));
            assert!(secret.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()));
            of(&data).expect("again");
            assert_eq!(std::fs::read_to_string(&file).expect("read"), secret);
        }
    }

    #[tokio::test]
    async fn an_instance_is_found_while_it_runs() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(Instance::read(dir.path()).expect("none"), None);
        let instance = Instance {
            webhook_url: "http://127.0.0.1:8000/webhook/gitea".into(),
            operator_url: "http://127.0.0.1:8001".into(),
            nats_url: "nats://127.0.0.1:4222".into(),
            nats_login: Some(NatsLogin { user: "local".into(), password_file: "/d/p".into() }),
            secret_file: None,
            gitea_url: None,
            pid: 1,
        };
        instance.write(dir.path()).await.expect("write");
        assert_eq!(mode(&dir.path().join("coordinator.json")), 0o600);
        assert_eq!(Instance::read(dir.path()).expect("one"), Some(instance));
        Instance::remove(dir.path()).expect("remove");
        assert_eq!(Instance::read(dir.path()).expect("none"), None);
        // Written by a former version.
        let former =
            r#"{"webhook_url":"w","operator_url":"o","nats_url":"n","secret_file":null,"pid":1}"#;
        std::fs::write(dir.path().join("coordinator.json"), former).expect("write");
        let read = Instance::read(dir.path()).expect("one").expect("one");
        assert_eq!((read.nats_url.as_str(), read.nats_login), ("n", None));
    }

    #[test]
    fn an_instance_runs_while_its_directory_is_locked() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(!Instance::is_running(dir.path()).expect("never opened"));
        let data = DataDir::open(dir.path()).expect("open");
        assert!(Instance::is_running(dir.path()).expect("open"));
        drop(data);
        assert!(!Instance::is_running(dir.path()).expect("closed"));
    }

    #[test]
    fn what_a_former_version_left_open_is_put_right() {
        let dir = tempfile::tempdir().expect("directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["webhook-secret", "journal.db", "coordinator.lock", "nats-server.log"] {
            std::fs::write(at(name), "").expect("write");
        }
        std::fs::create_dir(at("nats")).expect("make");
        let open = std::fs::Permissions::from_mode(0o755);
        for name in
            ["webhook-secret", "journal.db", "coordinator.lock", "nats-server.log", "nats", ""]
        {
            std::fs::set_permissions(at(name), open.clone()).expect("chmod");
        }
        DataDir::open(dir.path()).expect("open");
        for name in
            ["webhook-secret", "journal.db", "coordinator.lock", "nats-server.log", "nats", ""]
        {
            assert_eq!(mode(&at(name)), 0o700, "{name}");
        }
    }

    #[test]
    fn a_directory_that_others_need_is_a_wrong_setting() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("thesis.tex"), "").expect("write");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("chmod");
        let error = DataDir::open(dir.path()).expect_err("others need it");
        assert!(error.is::<SettingsError>(), "{error}");
        assert_eq!(mode(dir.path()), 0o755);
    }
}
