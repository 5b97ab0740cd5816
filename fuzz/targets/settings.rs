//! Settings as somebody may write them. Input: one text a line, each for several settings.
#![no_main]

use ingest::settings::IngestArgs;
use service::{role::CommonArgs, settings::Problems};
use worker::settings::WorkerArgs;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n').map(|line| Some(line.to_owned()));
    let mut next = || lines.next().flatten();
    let mut common = CommonArgs::default();
    common.own.gitea_url = next();
    common.broker.nats_url = next();
    common.broker.nats_inbox_prefix = next();
    common.telemetry.otlp_endpoint = next();
    common.streams.partitions = next();
    common.streams.dedup_window_secs = next();
    let ingest = IngestArgs {
        host: next(),
        port: next(),
        max_body_bytes: next(),
        journal_retention_secs: next(),
        gitea_webhook_secret: next(),
        ..IngestArgs::default()
    };
    let worker = WorkerArgs { ack_wait_secs: next(), ..WorkerArgs::default() };

    let mut problems = Problems::default();
    let checked = common.check(&mut problems);
    let printed = [
        format!("{:?}", worker.settings(checked.clone(), &mut problems)),
        format!("{:?}", ingest.settings(checked.clone(), &mut problems)),
        format!("{common:?} {ingest:?} {worker:?} {checked:?}"),
        common.shown().iter().chain(&ingest.shown()).map(ToString::to_string).collect(),
        problems.finish(()).err().map(|error| error.to_string()).unwrap_or_default(),
    ];
    // A password or a secret that cannot stand there by chance, and that no other setting shows.
    let secret = ingest.gitea_webhook_secret.as_deref().unwrap_or_default().trim();
    let url = common.broker.nats_url.as_deref().unwrap_or_default();
    let login = url.rsplit_once('@').map(|(login, _)| login.rsplit([':', '/']).next());
    for secret in [secret, login.flatten().unwrap_or_default()] {
        if secret.len() > 8 && secret.starts_with("s3cr3t") && text.matches(secret).count() == 1 {
            for printed in &printed {
                assert!(!printed.contains(secret), "{printed}");
            }
        }
    }
});
