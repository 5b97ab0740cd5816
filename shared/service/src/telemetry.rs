//! Logs and traces of a process.
//!
//! Logs go to standard output. Traces are exported over OTLP if an endpoint is
//! set, and cost nothing otherwise.

mod client;
mod exporter;
mod gathering;
pub mod metrics;
pub mod trace;

use std::{io::IsTerminal, sync::OnceLock, time::Duration};

use opentelemetry::{global, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use thiserror::Error;
use tracing::{Level, Metadata, level_filters::LevelFilter, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer, filter::FilterFn, layer::SubscriberExt, registry::LookupSpan, util::SubscriberInitExt,
};

use self::{
    client::direct_client,
    exporter::ReportingExporter,
    gathering::GatheringWriter,
    trace::{DeliveryIdGenerator, RatioSampler, TRACES_ONLY},
};
use crate::settings::{Show, otlp_endpoint, switch};

/// Lines that may wait to be written. The memory for all of them is taken at the start.
const WAITING_LINES: usize = 32 * 1024;

/// Counts lines that were dropped. A process has one log, whatever roles run in it.
static DROPPED_LINES: OnceLock<ErrorCounter> = OnceLock::new();

/// Crate of the NATS client.
const NATS_CLIENT: &str = "async_nats";

/// How long the export of the last spans may take at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

crate::settings! {
    /// What is logged and where traces go.
    pub struct TelemetryArgs => TelemetrySettings {
        log_level: Level = "LOG_LEVEL" or "info" = Level::INFO, level,
            "debug, info, warning or error";
        log_format: LogFormat = "LOG_FORMAT" or "text on a terminal, else json" = LogFormat::of_stdout(), format,
            "text or json";
        otlp_endpoint: Option<String> = "OTEL_EXPORTER_OTLP_ENDPOINT", otlp_endpoint,
            "Where to send traces and metrics over OTLP/HTTP, without /v1/traces; nowhere when unset";
        otel_sdk_disabled: bool = "OTEL_SDK_DISABLED" or "false" = false, switch,
            "true sends no traces and metrics, whatever the endpoint";
        trace_ratio: f64 = "OTEL_TRACES_SAMPLER_ARG" or "1" = 1.0, crate::settings::number(0.0, 1.0),
            "Share of deliveries that are traced, from 0 to 1";
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
    /// Text for people.
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
        let traces = match settings.endpoint() {
            Some(endpoint) => Some(tracer_provider(endpoint, service, settings.trace_ratio)?),
            None => None,
        };
        let trace_layer = traces.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("coordinator"))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_target(false)
                .with_filter(traced(crates))
        });
        tracing_subscriber::registry()
            .with(log_layer(format, writer).with_filter(logged(settings.log_level, crates)))
            .with(trace_layer)
            .try_init()?;
        let _ = DROPPED_LINES.set(dropped_lines);
        Ok(Self { traces, format, _log_writer: guard })
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

fn log_layer<S>(format: LogFormat, writer: NonBlocking) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        LogFormat::Text => Box::new(
            tracing_subscriber::fmt::layer()
                .compact()
                .with_ansi(std::io::stdout().is_terminal())
                .with_target(false)
                .with_writer(writer),
        ),
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

fn tracer_provider(
    endpoint: &str,
    service: &str,
    ratio: f64,
) -> Result<SdkTracerProvider, TelemetryError> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let exporter = SpanExporter::builder().with_http();
    let exporter = match direct_client(endpoint)? {
        Some(client) => exporter.with_http_client(client),
        None => exporter,
    };
    let exporter = exporter.with_endpoint(format!("{endpoint}/v1/traces")).build()?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(ReportingExporter::new(exporter))
        .with_id_generator(DeliveryIdGenerator::default())
        .with_sampler(Sampler::ParentBased(Box::new(RatioSampler::new(ratio))))
        .with_resource(resource(service))
        .build())
}

/// The resource of exported spans and metrics. The SDK reads `OTEL_SERVICE_NAME` and
/// `OTEL_RESOURCE_ATTRIBUTES`, which take precedence.
fn resource(service: &str) -> Resource {
    let from_environment = Resource::builder().build();
    let unnamed = from_environment
        .get(&opentelemetry::Key::from_static_str("service.name"))
        .is_none_or(|name| name.as_str().starts_with("unknown_service"));
    if unnamed {
        Resource::builder().with_service_name(format!("coordinator-{service}")).build()
    } else {
        from_environment
    }
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
        let subscriber = Registry::default()
            .with(log_layer(LogFormat::Json, writer).with_filter(FilterFn::new(|_| true)));
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
