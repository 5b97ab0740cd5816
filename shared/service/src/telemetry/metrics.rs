//! The meters of a process: scraped as Prometheus text at `/metrics`, and
//! sent over OTLP if an endpoint is set.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider};
use opentelemetry_otlp::{MetricExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder, proto::MetricFamily};
use thiserror::Error;
use tracing::error;

use super::{TelemetryError, client::direct_client, dropped_lines, resource};

/// Bounds of latency histograms, in seconds. The SDK's default bounds start at 5.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Creates a counter.
pub fn counter(meter: &Meter, name: &'static str, description: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_description(description).build()
}

/// Creates a histogram of latencies, in seconds.
pub fn seconds(meter: &Meter, name: &'static str, description: &'static str) -> Histogram<f64> {
    meter
        .f64_histogram(name)
        .with_unit("s")
        .with_description(description)
        .with_boundaries(SECONDS.to_vec())
        .build()
}

/// Meters, and the registry they are scraped from.
#[derive(Clone, Debug)]
pub struct Metrics {
    provider: SdkMeterProvider,
    registry: Registry,
}

/// Why metrics could not be set up.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The exporter of scraped metrics cannot be built.
    #[error("set up the Prometheus exporter")]
    Prometheus(#[source] opentelemetry_sdk::error::OTelSdkError),
    /// The exporter of sent metrics cannot be built.
    #[error("set up the OTLP exporter of metrics")]
    Otlp(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The HTTP client of sent metrics cannot be built.
    #[error("set up the OTLP exporter of metrics")]
    Client(#[source] TelemetryError),
}

impl Metrics {
    /// Meters of the process `service`.
    pub fn new(service: &str, otlp_endpoint: Option<&str>) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let scraped = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(MetricsError::Prometheus)?;
        let mut provider =
            SdkMeterProvider::builder().with_resource(resource(service)).with_reader(scraped);
        if let Some(endpoint) = otlp_endpoint {
            let exporter = MetricExporter::builder().with_http();
            let exporter = match direct_client(endpoint).map_err(MetricsError::Client)? {
                Some(client) => exporter.with_http_client(client),
                None => exporter,
            };
            let exporter = exporter.with_endpoint(format!("{endpoint}/v1/metrics")).build()?;
            provider = provider.with_periodic_exporter(exporter);
        }
        let metrics = Self { provider: provider.build(), registry };
        metrics.count_dropped_lines();
        Ok(metrics)
    }

    fn count_dropped_lines(&self) {
        self.meter()
            .u64_observable_counter("coordinator.log.dropped")
            .with_description("Log lines of the process that standard output did not take")
            .with_callback(|observer| observer.observe(dropped_lines(), &[]))
            .build();
    }

    /// The meter that creates instruments.
    pub fn meter(&self) -> Meter {
        self.provider.meter("coordinator")
    }

    /// All values.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// All values as Prometheus text.
    ///
    /// # Errors
    /// If two instruments contradict each other, which is a bug.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.gather())
    }

    /// The answer to `GET /metrics`.
    pub fn render(&self) -> Response {
        match self.text() {
            Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
            Err(error) => {
                error!(%error, "cannot render the metrics");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}
