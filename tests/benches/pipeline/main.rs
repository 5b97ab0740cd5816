//! `cargo bench`: the speed of the product beside minimal alternatives, in one run.
//!
//! Real processes on real files: ingest, worker and nats-server are separate
//! processes, this process makes the load, and all share the cores of one machine.

#[cfg(target_os = "linux")]
mod abuse;
mod backlog;
#[cfg(target_os = "linux")]
mod beside;
#[cfg(target_os = "linux")]
mod contenders;
#[cfg(target_os = "linux")]
mod cpu;
#[cfg(target_os = "linux")]
mod fastapi;
mod figures;
#[cfg(target_os = "linux")]
mod growth;
mod load;
#[cfg(target_os = "linux")]
mod pages;
#[cfg(target_os = "linux")]
mod profile;
mod reference;
mod scenarios;
#[cfg(target_os = "linux")]
mod spans;
mod told;

use std::path::PathBuf;

fn main() {
    // Cargo passes --bench. Other arguments name scenarios.
    let pick: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if reference::run_as_handler(&pick) {
        return;
    }
    #[cfg(target_os = "linux")]
    if let [role, address] = &pick[..]
        && role == "abusers"
    {
        let address = address.parse().expect("an address");
        return tokio::runtime::Runtime::new().expect("a runtime").block_on(abuse::abuse(address));
    }
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_process-under-test"));
    // One thread makes the load, so that more processor time is left to what is measured.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        scenarios::run(&exe, &pick).await;
        #[cfg(target_os = "linux")]
        growth::run(&exe, &pick).await;
    });
}
