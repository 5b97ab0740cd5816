//! Logs and traces of a process.
//!
//! Logs go to standard output. Spans are kept in memory for a while, and exported over OTLP if an
//! endpoint is set.

pub(crate) mod budget;
mod client;
mod exporter;
mod gathering;
mod line;
pub mod metrics;
pub mod span_store;
pub mod trace;

use std::{
    io::IsTerminal,
    sync::{Arc, OnceLock},
    time::Duration,
};

use opentelemetry::{Key, KeyValue, global, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider, ShouldSample},
};
use thiserror::Error;
use tracing::{Level, Metadata, level_filters::LevelFilter, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer, filter::FilterFn, layer::SubscriberExt, registry::LookupSpan, util::SubscriberInitExt,
};

pub use self::budget::LastMinute;
use self::{
    budget::Budget,
    client::direct_client,
    exporter::ReportingExporter,
    gathering::GatheringWriter,
    line::{LineLayer, Style},
    span_store::{SpanStore, StoringProcessor},
    trace::{DeliveryIdGenerator, RatioSampler, SCOPE, StoreOnly, TRACES_ONLY},
};
use crate::{
    settings::{Show, otlp_endpoint, switch, trace_url},
    terminal::Colors,
};

/// Lines that may wait to be written. The memory for all of them is taken at the start.
const WAITING_LINES: usize = 32 * 1024;

/// Counts lines that were dropped. A process has one log, whatever roles run in it.
static DROPPED_LINES: OnceLock<ErrorCounter> = OnceLock::new();

/// Crate of the NATS client.
const NATS_CLIENT: &str = "async_nats";

/// New deliveries a second that are traced where only the span store wants spans. That is many times
/// what the busiest Gitea sends, and less than a hundredth of a core.
const TRACED_PER_SECOND: u32 = 500;

/// Largest span store.
const MAX_SPAN_STORE: usize = 16 << 30;

/// Attribute of a resource: the name of the process.
const SERVICE_NAME: Key = Key::from_static_str("service.name");
/// Attribute of a resource: the name of the machine or container.
const HOST_NAME: Key = Key::from_static_str("host.name");

/// How long the export of the last spans may take at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

crate::settings! {
    /// What is logged and where traces go.
    pub struct TelemetryArgs => TelemetrySettings {
        log_level: Level = "LOG_LEVEL" or "info" = Level::INFO, level,
            "debug, info, warning or error";
        log_format: LogFormat = "LOG_FORMAT" or "text on a terminal, else json" = LogFormat::of_stdout(), format,
            "text or json";
        no_color: Option<String> = "NO_COLOR", crate::settings::any,
            "Anything here means no colors on a terminal";
        otlp_endpoint: Option<String> = "OTEL_EXPORTER_OTLP_ENDPOINT", otlp_endpoint,
            "Where to send traces and metrics over OTLP/HTTP, without /v1/traces; nowhere when unset";
        otel_sdk_disabled: bool = "OTEL_SDK_DISABLED" or "false" = false, switch,
            "true sends no traces and metrics, whatever the endpoint";
        trace_ratio: f64 = "OTEL_TRACES_SAMPLER_ARG" or "1" = 1.0, crate::settings::number(0.0, 1.0),
            "Share of deliveries that are traced where an endpoint is set, from 0 to 1";
        trace_url: Option<String> = "TRACE_URL", trace_url,
            "Page of a trace in your trace UI, with {trace_id} in place of its id";
        span_store_bytes: usize = "SPAN_STORE_BYTES" or "33554432" = 32 << 20, crate::settings::number(0, MAX_SPAN_STORE),
            "Memory for the last spans of this process; 0 keeps none";
    }
}

fn level(text: &str) -> Result<Level, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "info" => Level::INFO,
        "debug" => Level::DEBUG,
        "warning" | "warn" => Level::WARN,
        "error" => Level::ERROR,
        _ => return Err("is not debug, info, warning or error".into()),
    })
}

fn format(text: &str) -> Result<LogFormat, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        _ => return Err("is not text or json".into()),
    })
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line an event for people, no wider than a terminal.
    Text,
    /// One JSON object a line, fields of the delivery at its top level.
    Json,
}

impl LogFormat {
    /// Text for a terminal, JSON for all else.
    fn of_stdout() -> Self {
        if std::io::stdout().is_terminal() { Self::Text } else { Self::Json }
    }
}

impl Show for LogFormat {
    fn show(&self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Json => "json".into(),
        }
    }
}

impl TelemetrySettings {
    /// Where to send traces and metrics. None sends nothing.
    pub fn endpoint(&self) -> Option<&str> {
        self.otlp_endpoint.as_deref().filter(|_| !self.otel_sdk_disabled)
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The exporter of traces cannot be built.
    #[error("set up the OTLP exporter")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The thread that builds an HTTP client cannot be started, or it panicked.
    #[error("start a thread for the OTLP client")]
    Thread(#[source] std::io::Error),
    /// The HTTP client of an exporter cannot be built.
    #[error("build the HTTP client for OTLP")]
    Client(#[source] reqwest::Error),
    /// A subscriber is installed already.
    #[error("install the log subscriber")]
    Install(#[from] tracing_subscriber::util::TryInitError),
}

/// The running telemetry of a process. Shut it down last.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    spans: SpanStore,
    format: LogFormat,
    _log_writer: WorkerGuard,
}

impl Telemetry {
    /// Installs logs and traces for the whole process. `service` is the name of the process in
    /// traces. Lines of `crates` are logged from the set level on, lines of other crates only if
    /// they are warnings or errors.
    ///
    /// # Errors
    /// If the exporter cannot be set up, or a subscriber is installed already.
    pub fn init(
        settings: &TelemetrySettings,
        service: &str,
        crates: &'static [&'static str],
    ) -> Result<Self, TelemetryError> {
        // A pipe that nobody reads must not stop deliveries, so lines beyond the limit are dropped.
        let stdout =
            GatheringWriter::new(std::io::stdout(), settings.log_format == LogFormat::Json);
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(WAITING_LINES)
            .finish(stdout);
        let dropped_lines = writer.error_counter();
        let format = settings.log_format;
        let (traces, spans) = tracing(settings, service)?;
        let trace_layer = traces.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(SCOPE))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_target(false)
                .with_filter(traced(crates))
        });
        tracing_subscriber::registry()
            .with(log_layer(settings, writer).with_filter(logged(settings.log_level, crates)))
            .with(trace_layer)
            .try_init()?;
        let _ = DROPPED_LINES.set(dropped_lines);
        Ok(Self { traces, spans, format, _log_writer: guard })
    }

    /// The spans that this process keeps.
    pub fn spans(&self) -> &SpanStore {
        &self.spans
    }

    /// The log format in use.
    pub fn format(&self) -> LogFormat {
        self.format
    }

    /// Exports the spans that still wait. Takes some seconds at most.
    pub async fn shutdown(self) {
        let Some(traces) = self.traces.clone() else { return };
        let flushed =
            tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the last traces could not be sent"),
            Err(error) => warn!(%error, "the last traces could not be sent"),
        }
    }
}

/// Number of log lines of this process that were dropped, since standard output took no more.
fn dropped_lines() -> u64 {
    DROPPED_LINES.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Filter for traces: spans of the product at any level, and warnings and errors.
fn traced(crates: &'static [&'static str]) -> FilterFn<impl Fn(&Metadata<'_>) -> bool> {
    FilterFn::new(move |metadata| {
        if metadata.is_span() {
            metadata.target() == TRACES_ONLY || crates.contains(&crate_of(metadata.target()))
        } else {
            *metadata.level() <= Level::WARN
        }
    })
    .with_max_level_hint(LevelFilter::INFO)
}

/// Filter for the log: events of at least `level`, and the spans whose fields the lines within
/// them carry. Of libraries only warnings and errors are logged. The NATS client writes a line at
/// each attempt to connect, so it is heard at `debug` only; what happens is told by `broker`.
fn logged(
    level: Level,
    crates: &'static [&'static str],
) -> FilterFn<impl Fn(&Metadata<'_>) -> bool> {
    FilterFn::new(move |metadata| {
        let ours = crates.contains(&crate_of(metadata.target()));
        if metadata.is_span() {
            ours
        } else {
            let heard = crate_of(metadata.target()) != NATS_CLIENT || level >= Level::DEBUG;
            *metadata.level() <= level && (ours || (*metadata.level() <= Level::WARN && heard))
        }
    })
    .with_max_level_hint(LevelFilter::from_level(level.max(Level::INFO)))
}

fn crate_of(target: &str) -> &str {
    target.split_once("::").map_or(target, |(first, _)| first)
}

fn log_layer<S>(
    settings: &TelemetrySettings,
    writer: NonBlocking,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    match settings.log_format {
        LogFormat::Text => {
            let is_terminal = std::io::stdout().is_terminal();
            let colors = Colors::new(is_terminal, settings.no_color.as_deref());
            let detailed = settings.log_level >= Level::DEBUG;
            Box::new(LineLayer::new(writer, Style { colors, detailed }))
        }
        LogFormat::Json => Box::new(
            json_subscriber::fmt::layer()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .flatten_span_list_on_top_level(true)
                .with_writer(writer),
        ),
    }
}

/// The source of spans, if anything wants them, and the store that keeps them.
fn tracing(
    settings: &TelemetrySettings,
    service: &str,
) -> Result<(Option<SdkTracerProvider>, SpanStore), TelemetryError> {
    let (endpoint, bytes) = (settings.endpoint(), settings.span_store_bytes);
    if endpoint.is_none() && bytes == 0 {
        return Ok((None, SpanStore::default()));
    }
    global::set_text_map_propagator(TraceContextPropagator::new());
    let resource = resource(service);
    let name = resource.get(&SERVICE_NAME).map(|name| name.to_string()).unwrap_or_default();
    let (store, sampler): (_, Box<dyn ShouldSample>) = match endpoint {
        Some(_) => {
            let ratio = RatioSampler::new(settings.trace_ratio);
            (SpanStore::new(bytes, name), Box::new(ratio))
        }
        None => {
            let deliveries = Arc::new(Budget::new(TRACED_PER_SECOND));
            let failures = Budget::new(TRACED_PER_SECOND);
            let store = SpanStore::with_budget(bytes, name, Some(Arc::clone(&deliveries)));
            trace::limit_to(StoreOnly { deliveries, failures });
            (store, Box::new(Sampler::AlwaysOn))
        }
    };
    let mut provider = SdkTracerProvider::builder()
        .with_id_generator(DeliveryIdGenerator::default())
        .with_sampler(Sampler::ParentBased(sampler))
        .with_resource(resource);
    if store.is_on() {
        provider = provider.with_span_processor(StoringProcessor { store: store.clone() });
    }
    if let Some(endpoint) = endpoint {
        provider = provider.with_batch_exporter(ReportingExporter::new(exporter(endpoint)?));
    }
    let provider = provider.build();
    global::set_tracer_provider(provider.clone());
    Ok((Some(provider), store))
}

fn exporter(endpoint: &str) -> Result<SpanExporter, TelemetryError> {
    let exporter = SpanExporter::builder().with_http();
    let exporter = match direct_client(endpoint)? {
        Some(client) => exporter.with_http_client(client),
        None => exporter,
    };
    Ok(exporter.with_endpoint(format!("{endpoint}/v1/traces")).build()?)
}

/// The resource of exported spans and metrics. The SDK reads `OTEL_SERVICE_NAME` and
/// `OTEL_RESOURCE_ATTRIBUTES`, which take precedence.
fn resource(service: &str) -> Resource {
    let given = Resource::builder().build();
    let mut resource = Resource::builder();
    if given.get(&SERVICE_NAME).is_none_or(|name| name.as_str().starts_with("unknown_service")) {
        resource = resource.with_service_name(format!("coordinator-{service}"));
    }
    // Trace UIs take processes without a host for ones whose clocks may differ.
    if given.get(&HOST_NAME).is_none() {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        resource = resource.with_attribute(KeyValue::new(HOST_NAME, host));
    }
    resource.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::Registry;

    #[test]
    fn levels_and_formats_are_read_in_any_case() {
        for (text, expected) in [
            ("debug", Some(Level::DEBUG)),
            ("INFO", Some(Level::INFO)),
            ("warning", Some(Level::WARN)),
            ("warn", Some(Level::WARN)),
            ("Error", Some(Level::ERROR)),
            ("loud", None),
        ] {
            assert_eq!(level(text).ok(), expected, "{text}");
        }
        assert_eq!(format("JSON"), Ok(LogFormat::Json));
        assert!(format("xml").is_err());
    }

    #[test]
    fn a_disabled_sdk_sends_nothing_whatever_the_endpoint() {
        let some = |text: &str| Some(text.to_owned());
        for (endpoint, disabled, expected) in [
            (None, None, None),
            (some("http://h:4318/v1/traces"), None, Some("http://h:4318")),
            (some("http://h:4318"), some("false"), Some("http://h:4318")),
            (some("http://h:4318"), some("True"), None),
        ] {
            let args = TelemetryArgs {
                otlp_endpoint: endpoint,
                otel_sdk_disabled: disabled,
                ..TelemetryArgs::default()
            };
            let mut problems = crate::settings::Problems::default();
            let settings = args.check(&mut problems);
            problems.finish(()).expect("good settings");
            assert_eq!(settings.endpoint(), expected);
        }
    }

    #[test]
    fn a_line_carries_the_fields_of_the_spans_around_it_at_its_top_level() {
        let (reader, writer) = std::io::pipe().expect("pipe");
        let (writer, guard) = NonBlockingBuilder::default().finish(writer);
        let args = TelemetryArgs { log_format: Some("json".into()), ..TelemetryArgs::default() };
        let settings = args.check(&mut crate::settings::Problems::default());
        let subscriber = Registry::default()
            .with(log_layer(&settings, writer).with_filter(FilterFn::new(|_| true)));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!(
                "delivery",
                gitea.delivery.id = "d-1",
                gitea.action = tracing::field::Empty
            );
            span.record("gitea.action", "closed");
            span.in_scope(|| tracing::info!(outcome = "accepted", "delivery accepted"));
        });
        drop(guard);
        let line: serde_json::Value = serde_json::from_reader(reader).expect("one line of JSON");
        for (name, value) in [
            ("gitea.delivery.id", "d-1"),
            ("gitea.action", "closed"),
            ("outcome", "accepted"),
            ("message", "delivery accepted"),
            ("level", "INFO"),
        ] {
            assert_eq!(line[name], value, "{line}");
        }
    }
}
