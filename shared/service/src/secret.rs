//! Secrets, which are never printed.

use std::{borrow::Cow, fmt, path::Path};

use crate::settings::{Problems, read_file, text};

/// Bytes that are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps a secret.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The secret itself. The name draws attention to every use.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, for protocols that want text.
    pub fn expose_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
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
