//! The PATH without the working directory.

use std::{
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// The directories of a PATH that are absolute. An empty or relative one means the working
/// directory, where anybody may have put a program: it may be a repository that was just cloned.
#[derive(Clone, Debug, Default)]
pub(super) struct SearchPath(Vec<PathBuf>);

impl SearchPath {
    pub(super) fn new(path: &OsStr) -> Self {
        Self(std::env::split_paths(path).filter(|dir| dir.is_absolute()).collect())
    }

    /// Absolute path of a program.
    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        self.0.iter().map(|dir| dir.join(program)).find(|file| is_executable(file))
    }

    /// The PATH of programs that are run, which search it themselves.
    pub(super) fn to_variable(&self) -> OsString {
        // A directory from a PATH has no colon in its name.
        std::env::join_paths(&self.0).unwrap_or_default()
    }
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_directories_are_searched() {
        let dir = tempfile::tempdir().expect("directory");
        let program = dir.path().join("program");
        std::fs::write(&program, "").expect("write");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let absolute = dir.path().display().to_string();
        // The working directory of this test is the package's.
        let to_root = "../".repeat(32);
        let relative = format!("{to_root}{}", absolute.trim_start_matches('/'));
        assert!(Path::new(&relative).join("program").exists(), "{relative}");
        for (path, found) in [
            (absolute.clone(), true),
            (format!(":.:{absolute}:"), true),
            (relative.clone(), false),
            (format!("{relative}:"), false),
            (String::new(), false),
        ] {
            let search = SearchPath::new(path.as_ref());
            assert_eq!(search.find("program"), found.then(|| program.clone()), "{path}");
            let variable = if found { absolute.as_str() } else { "" };
            assert_eq!(search.to_variable(), variable, "{path}");
        }
    }
}
