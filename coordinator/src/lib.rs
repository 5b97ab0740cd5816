//! Coordinator: one binary with the roles and the commands.

pub mod cli;
mod commands;
pub mod delivery;
mod local;
mod page;
mod worker_side;

pub use local::nats_server;

/// Crates whose log lines and spans count as the product's own.
pub(crate) const CRATES: &[&str] =
    &["contract", "service", "gitea", "ingest", "worker", "sync", "reactor", "coordinator"];

#[cfg(test)]
mod tests {
    fn members() -> impl Iterator<Item = &'static str> {
        let manifest = include_str!("../../Cargo.toml");
        let members =
            manifest.lines().find(|line| line.starts_with("members = ")).expect("members");
        members.split('"').skip(1).step_by(2)
    }

    #[test]
    fn every_member_of_the_workspace_is_logged() {
        // Neither is part of the program: subscribers build on the client.
        let others = ["tests", "clients/rust"];
        for path in members().filter(|path| !others.contains(path)) {
            let name = path.rsplit('/').next().unwrap_or(path);
            assert!(super::CRATES.contains(&name), "{path} is missing in CRATES");
        }
    }

    #[test]
    fn every_member_of_the_workspace_gets_into_the_images() {
        let let_in: Vec<_> = include_str!("../../.dockerignore")
            .lines()
            .filter_map(|line| line.strip_prefix('!'))
            .collect();
        for path in members() {
            let is_let_in = let_in.iter().any(|dir| {
                path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
            assert!(is_let_in, "{path} is missing in .dockerignore");
        }
    }
}
