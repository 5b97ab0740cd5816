//! How cost grows: one curve each, as a table that can be pasted.
//!
//! They take minutes, so they run only when named: `growth` for all, or one such as
//! `growth-journal`.

mod bodies;
mod drain;
mod hot_issue;
mod issues;
mod journal;
mod stream;
mod table;
mod workers;

use std::path::Path;

/// Runs the curves whose names begin with one of `pick`.
pub async fn run(exe: &Path, pick: &[String]) {
    let picked = |name: &str| pick.iter().any(|p| name.starts_with(p.as_str()));
    if picked("growth-workers") {
        workers::curve(exe).await;
    }
    if picked("growth-issues") {
        issues::curve(exe).await;
    }
    if picked("growth-hot-issue") {
        hot_issue::curve(exe).await;
    }
    if picked("growth-backlog") {
        stream::curve(exe).await;
    }
    if picked("growth-journal") {
        journal::curve(exe).await;
    }
    if picked("growth-bodies") {
        bodies::curve(exe).await;
    }
}
