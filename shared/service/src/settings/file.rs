//! Settings that are paths. What they name is read before anything starts.

use std::{
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustix::fs::{Access, access};

use super::{Problems, text};
use crate::secret::Secret;

/// Largest file of a setting, in bytes. A bundle of all public authorities has 250 kB.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Reads a path.
pub fn path(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

/// Reads the file that a setting names. The problem names the path.
pub fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let shown = shown(path)?;
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => format!("is {shown}, which does not exist"),
        // A container engine makes a directory of what it is to mount and does not find.
        io::ErrorKind::IsADirectory => format!("is {shown}, which is a directory and not a file"),
        _ => format!("is {shown}, which cannot be read ({error})"),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(broken)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(broken)?;
    match bytes.as_slice() {
        [] => Err(format!("is {shown}, which is empty")),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            Err(format!("is {shown}, which is UTF-16; save it as UTF-8"))
        }
        [0xef, 0xbb, 0xbf, ..] => {
            Err(format!("is {shown}, which begins with a byte order mark; save it without"))
        }
        bytes if bytes.len() as u64 > MAX_BYTES => {
            Err(format!("is {shown}, which is larger than {MAX_BYTES} bytes"))
        }
        _ => Ok(bytes),
    }
}

/// The path for a message, unless it seems to be the content that belongs into the file.
fn shown(path: &Path) -> Result<String, String> {
    let text = path.display().to_string();
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let is_path = path.is_absolute()
        || text.starts_with('.')
        || path.exists()
        || parent.is_some_and(Path::is_dir);
    if text.contains(char::is_control) || text.starts_with("-----") || !is_path {
        return Err("names no file; it takes the path of a file, not what is in it".into());
    }
    Ok(text)
}

/// Reads the path of a file that holds certificates, in PEM.
pub fn certificates(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let pem = read_file(&path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(path),
        _ => Err(format!("is {}, which holds no certificate in PEM", path.display())),
    }
}

/// Reads the path of a file that holds a private key, in PEM.
pub fn private_key(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let pem = read_file(&path)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok(path),
        Err(_) => Err(format!("is {}, which holds no private key in PEM", path.display())),
    }
}

/// Reads the path of a NATS credentials file, as `nsc` writes it: a JWT and the seed of its key.
pub fn credentials(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let creds = read_file(&path)?;
    let creds = String::from_utf8_lossy(&creds);
    let has = |kind: &str| {
        let mut lines = creds.lines().map(str::trim).skip_while(|line| {
            !(line.starts_with("---") && line.contains("BEGIN") && line.contains(kind))
        });
        lines.nth(1).is_some_and(|line| !line.is_empty() && !line.starts_with('-'))
    };
    if has("JWT") && has("SEED") {
        Ok(path)
    } else {
        Err(format!("is {}, which is not a NATS credentials file", path.display()))
    }
}

/// Reads the path of a directory that is written to. It may not exist yet.
pub fn directory(text: &str) -> Result<PathBuf, String> {
    // Who sets one of these knows SQLite, and would lose what is to be kept.
    if text.starts_with("file:") || text == ":memory:" {
        return Err("is a name for SQLite, not a directory".into());
    }
    let path = PathBuf::from(text);
    let shown = path.display();
    let there = std::path::absolute(&path)
        .map_err(|error| format!("is {shown}, which cannot be used ({error})"))?;
    // What does not exist yet is made in the nearest directory above it.
    let mut nearest = there.as_path();
    let found = loop {
        match nearest.metadata() {
            Ok(found) => break found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Something above it is a file.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(format!("is {shown}, which cannot be used ({error})")),
        }
        match nearest.parent() {
            Some(parent) if nearest.components().next_back() != Some(Component::RootDir) => {
                nearest = parent;
            }
            _ => return Err(format!("is {shown}, which cannot be used")),
        }
    };
    let of = if nearest == there { String::new() } else { format!("; {} ", nearest.display()) };
    if !found.is_dir() {
        return Err(match of.as_str() {
            "" => format!("is {shown}, which is not a directory"),
            of => format!("is {shown}, which cannot be made{of}is not a directory"),
        });
    }
    access(nearest, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let error = io::Error::from(error);
        match of.as_str() {
            "" => format!("is {shown}, which this user cannot write to ({error})"),
            of => format!("is {shown}, which cannot be made{of}cannot be written to ({error})"),
        }
    })?;
    Ok(path)
}

impl Problems {
    /// A secret from a setting or from the file that its `_FILE` variant
    /// names, without the line end that editors add. Empty means unset.
    pub fn secret(
        &mut self,
        name: &str,
        value: &Option<String>,
        file: &Option<String>,
    ) -> Option<Secret> {
        let value = text(value);
        let Some(file) = text(file) else { return value.map(Secret::new) };
        if value.is_some() {
            self.add(format!("{name} and {name}_FILE are both set"));
            return None;
        }
        let secret = read_file(Path::new(file)).and_then(|bytes| {
            let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
            if bytes.is_empty() {
                return Err(format!("is {file}, which is empty"));
            }
            Ok(Secret::new(bytes))
        });
        secret.map_err(|problem| self.add(format!("{name}_FILE {problem}"))).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "-----BEGIN NATS USER JWT-----\neyJ0.x.y\n------END NATS USER JWT------\n\n\
        -----BEGIN USER NKEY SEED-----\nSUAIO\n------END USER NKEY SEED------\n";

    #[test]
    fn a_file_that_is_of_no_use_is_told_with_its_path() {
        let dir = tempfile::tempdir().expect("directory");
        for (name, content, problem) in [
            ("good", Some(&b"s3cr3t"[..]), ""),
            ("missing", None, ", which does not exist"),
            ("empty", Some(b""), ", which is empty"),
            ("utf16le", Some(b"\xff\xfes\0"), ", which is UTF-16; save it as UTF-8"),
            ("utf16be", Some(b"\xfe\xff\0s"), ", which is UTF-16; save it as UTF-8"),
            (
                "utf8bom",
                Some(b"\xef\xbb\xbfs3cr3t"),
                ", which begins with a byte order mark; save it without",
            ),
            (".", None, ", which is a directory and not a file"),
        ] {
            let path = dir.path().join(name);
            if let Some(content) = content {
                std::fs::write(&path, content).expect("write");
            }
            let told = read_file(&path).err();
            let expected = (!problem.is_empty()).then(|| format!("is {}{problem}", path.display()));
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn what_seems_to_be_the_content_of_a_file_is_not_shown() {
        for text in ["s3cr3t", "s3/cr3t+x==", "-----BEGIN PRIVATE KEY-----\ns3cr3t"] {
            let problem = read_file(Path::new(text)).expect_err("no file");
            assert!(problem.starts_with("names no file") && !problem.contains("s3"), "{problem}");
        }
    }

    #[test]
    fn files_of_another_kind_are_told() {
        let dir = tempfile::tempdir().expect("directory");
        let signed = rcgen::generate_simple_self_signed(["h".to_owned()]).expect("a certificate");
        let (certificate, key) = (signed.cert.pem(), signed.signing_key.serialize_pem());
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("write");
            path.display().to_string()
        };
        let (certificate, key) = (file("cert", &certificate), file("key", &key));
        let (creds, text) = (file("creds", CREDENTIALS), file("text", "text"));
        let half = file("half", CREDENTIALS.split_once("\n\n").expect("two parts").0);
        for (read, good, bad) in [
            (certificates as fn(&str) -> Result<PathBuf, String>, &certificate, [&key, &text]),
            (private_key, &key, [&certificate, &text]),
            (credentials, &creds, [&half, &text]),
        ] {
            assert_eq!(read(good), Ok(good.into()));
            for bad in bad {
                let problem = read(bad).expect_err(bad);
                assert!(problem.starts_with(&format!("is {bad}, which ")), "{problem}");
            }
        }
    }

    #[test]
    fn a_directory_is_one_that_can_be_written_to() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("write");
        let at = |name: &str| dir.path().join(name).display().to_string();
        for (text, problem) in [
            (at(""), None),
            (at("a/b/c"), None),
            ("data".into(), None),
            ("./file:x".into(), None),
            (at("file"), Some("which is not a directory")),
            (at("file/x"), Some("is not a directory")),
            ("file::memory:".into(), Some("is a name for SQLite")),
            ("file:x?mode=memory".into(), Some("is a name for SQLite")),
            (":memory:".into(), Some("is a name for SQLite")),
        ] {
            match (directory(&text), problem) {
                (Ok(path), None) => assert_eq!(path, Path::new(&text)),
                (Err(told), Some(problem)) => assert!(told.contains(problem), "{told}"),
                (read, _) => panic!("{text}: {read:?}"),
            }
        }
        assert!(!dir.path().join("a").exists(), "a check makes nothing");
    }

    #[test]
    fn a_directory_that_cannot_be_written_to_is_told() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().expect("directory");
        let locked = std::fs::Permissions::from_mode(0o500);
        std::fs::set_permissions(dir.path(), locked).expect("chmod");
        // Nothing is locked for root.
        if File::create(dir.path().join("x")).is_ok() {
            return;
        }
        for text in [dir.path().to_owned(), dir.path().join("data")] {
            let problem = directory(&text.display().to_string()).expect_err("locked");
            assert!(problem.contains("(Permission denied"), "{problem}");
        }
    }

    #[test]
    fn secrets_come_from_a_setting_or_a_file_and_are_never_printed() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("secret");
        std::fs::write(&path, "s3cr3t\r\n").expect("write");
        let some = |text: &str| Some(text.to_owned());
        let file = some(path.to_str().expect("utf-8"));
        let mut problems = Problems::default();
        let secret = problems.secret("X", &None, &file).expect("from the file");
        assert_eq!(secret, Secret::new("s3cr3t"));
        assert!(!format!("{secret:?}").contains("s3cr3t"));
        assert_eq!(problems.secret("X", &some(" "), &None), None);
        assert_eq!(problems.secret("X", &some("a"), &None), Some(Secret::new("a")));
        assert_eq!(problems.secret("X", &some("a"), &file), None);
        std::fs::write(&path, "\n").expect("write");
        assert_eq!(problems.secret("X", &None, &file), None);
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(problems.secret("X", &None, &file), None);
        let path = path.display();
        assert_eq!(
            problems.finish(()).expect_err("three are wrong").to_string(),
            format!(
                "X and X_FILE are both set; X_FILE is {path}, which is empty; \
                 X_FILE is {path}, which does not exist"
            )
        );
    }
}
