//! Coordinator: one binary with the roles and the commands.

pub mod cli;
mod commands;
pub mod delivery;
mod local;

pub use local::nats_server;

/// Crates whose log lines and spans count as the product's own.
pub(crate) const CRATES: &[&str] = &["contract", "service", "ingest", "worker", "coordinator"];

#[cfg(test)]
mod tests {
    #[test]
    fn every_member_of_the_workspace_is_logged() {
        let manifest = include_str!("../../Cargo.toml");
        let members =
            manifest.lines().find(|line| line.starts_with("members = ")).expect("members");
        for path in members.split('"').skip(1).step_by(2).filter(|path| *path != "tests") {
            let name = path.rsplit('/').next().unwrap_or(path);
            assert!(super::CRATES.contains(&name), "{path} is missing in CRATES");
        }
    }
}
