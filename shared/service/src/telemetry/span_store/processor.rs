//! Passes spans that end to the store.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};

use super::SpanStore;

/// Keeps every sampled span in `store`.
#[derive(Debug)]
pub(in crate::telemetry) struct StoringProcessor {
    pub(in crate::telemetry) store: SpanStore,
}

impl SpanProcessor for StoringProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.store.keep(&span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
