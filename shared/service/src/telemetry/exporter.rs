//! An exporter of spans that logs when an outage begins and when it ends.

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use tracing::{info, warn};

use crate::causes::Causes;

/// Exports through `exporter`. An outage is one log line at its start and one at its end,
/// however many batches of spans are lost in between.
#[derive(Debug)]
pub(super) struct ReportingExporter<E> {
    exporter: E,
    failing: AtomicBool,
}

impl<E> ReportingExporter<E> {
    pub(super) fn new(exporter: E) -> Self {
        Self { exporter, failing: AtomicBool::new(false) }
    }

    fn report(&self, exported: &OTelSdkResult) {
        let failing = self.failing.swap(exported.is_err(), Ordering::Relaxed);
        match exported {
            Err(error) if !failing => {
                warn!(error = %Causes(error), "cannot export traces; spans are lost meanwhile");
            }
            Ok(()) if failing => info!("exporting traces again"),
            _ => {}
        }
    }
}

impl<E: SpanExporter> SpanExporter for ReportingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.exporter.export(batch).await;
        self.report(&exported);
        exported
    }

    fn shutdown_with_timeout(&self, timeout: std::time::Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    #[test]
    fn an_outage_is_one_line_at_its_start_and_one_at_its_end() {
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .with_writer(std::sync::Mutex::new(writer))
            .finish();
        let exporter = ReportingExporter::new(());
        let failure = || Err(OTelSdkError::InternalFailure("nobody there".into()));
        tracing::subscriber::with_default(subscriber, || {
            for exported in [Ok(()), failure(), failure(), Ok(()), Ok(()), failure()] {
                exporter.report(&exported);
            }
        });
        let mut lines = String::new();
        reader.read_to_string(&mut lines).expect("text");
        let said: Vec<_> = lines.lines().map(|line| line.trim().split(" traces").next()).collect();
        let (start, end) = (Some("WARN cannot export"), Some("INFO exporting"));
        assert_eq!(said, [start, end, start], "{lines}");
    }
}
