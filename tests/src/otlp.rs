//! A receiver of OTLP over HTTP, like a collector, that keeps what it receives.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header},
    response::IntoResponse,
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1 as proto,
};
use prost::Message;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::wait;

/// Attributes by name.
pub type Attributes = BTreeMap<String, Value>;

/// Status of a span at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not set.
    Unset,
    /// Success.
    Ok,
    /// Failure.
    Error,
}

/// A span as it was exported. Ids are in hex.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its trace.
    pub trace_id: String,
    /// Its id.
    pub id: String,
    /// The id of its parent; empty at the root.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: proto::span::SpanKind,
    /// Its start, in nanoseconds.
    pub start: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// Trace and span of each link.
    pub links: Vec<(String, String)>,
    /// How it ended.
    pub status: Status,
    /// Attributes of the resource that exported it.
    pub resource: Attributes,
}

impl Span {
    /// An attribute's value; null where there is none.
    pub fn attribute(&self, name: &str) -> &Value {
        self.attributes.get(name).unwrap_or(&Value::Null)
    }

    /// An attribute of the resource that exported it; null where there is none.
    pub fn resource(&self, name: &str) -> &Value {
        self.resource.get(name).unwrap_or(&Value::Null)
    }
}

#[derive(Debug, Default)]
struct Received {
    spans: Vec<Span>,
    metrics: BTreeSet<(String, String)>,
    trace_requests: usize,
}

/// A receiver on its own port. Stopped when dropped.
pub struct Receiver {
    address: SocketAddr,
    received: Arc<Mutex<Received>>,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Starts a receiver.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let received = Arc::new(Mutex::new(Received::default()));
        let router = Router::new()
            .route("/v1/traces", post(take_traces))
            .route("/v1/metrics", post(take_metrics))
            .with_state(Arc::clone(&received));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
        Self { address, received, task }
    }

    /// Its base URL, for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far, by their start.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = lock(&self.received).spans.clone();
        spans.sort_by_key(|span| span.start);
        spans
    }

    /// The spans of a trace so far, by their start.
    pub fn trace(&self, trace_id: &str) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| span.trace_id == trace_id);
        spans
    }

    /// Waits for a span of a trace.
    pub async fn span(&self, trace_id: &str, wanted: impl Fn(&Span) -> bool) -> Span {
        wait::until(&format!("a span of the trace {trace_id}"), || async {
            self.trace(trace_id).into_iter().find(&wanted)
        })
        .await
    }

    /// Number of requests with traces so far.
    pub fn trace_requests(&self) -> usize {
        lock(&self.received).trace_requests
    }

    /// Whether a metric of a service was received.
    pub fn has_metric(&self, service: &str, name: &str) -> bool {
        lock(&self.received).metrics.contains(&(service.to_owned(), name.to_owned()))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().expect("no panic while it was locked")
}

fn decode<T: Message + Default>(headers: &HeaderMap, body: Bytes) -> T {
    assert_eq!(headers[header::CONTENT_TYPE], "application/x-protobuf");
    T::decode(body).expect("an OTLP request")
}

/// An empty message, which means that everything was accepted.
fn taken() -> impl IntoResponse {
    [(header::CONTENT_TYPE, "application/x-protobuf")]
}

async fn take_traces(
    State(received): State<Arc<Mutex<Received>>>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let request: ExportTraceServiceRequest = decode(&headers, body);
    let mut received = lock(&received);
    received.trace_requests += 1;
    for of_resource in request.resource_spans {
        let resource = resource(of_resource.resource);
        let spans = of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
        received.spans.extend(spans.map(|exported| span(exported, resource.clone())));
    }
    taken()
}

async fn take_metrics(
    State(received): State<Arc<Mutex<Received>>>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let request: ExportMetricsServiceRequest = decode(&headers, body);
    let mut received = lock(&received);
    for of_resource in request.resource_metrics {
        let resource = resource(of_resource.resource);
        let service = resource["service.name"].as_str().expect("a text").to_owned();
        for metric in of_resource.scope_metrics.into_iter().flat_map(|of_scope| of_scope.metrics) {
            received.metrics.insert((service.clone(), metric.name));
        }
    }
    taken()
}

fn span(span: proto::Span, resource: Attributes) -> Span {
    let status = match span.status.as_ref().map(proto::Status::code) {
        None | Some(proto::status::StatusCode::Unset) => Status::Unset,
        Some(proto::status::StatusCode::Ok) => Status::Ok,
        Some(proto::status::StatusCode::Error) => Status::Error,
    };
    for event in &span.events {
        attributes(event.attributes.clone());
    }
    let links = span.links.iter();
    Span {
        kind: span.kind(),
        links: links.map(|l| (hex::encode(&l.trace_id), hex::encode(&l.span_id))).collect(),
        trace_id: hex::encode(span.trace_id),
        id: hex::encode(span.span_id),
        parent: hex::encode(span.parent_span_id),
        name: span.name,
        start: span.start_time_unix_nano,
        attributes: attributes(span.attributes),
        status,
        resource,
    }
}

fn resource(resource: Option<Resource>) -> Attributes {
    attributes(resource.expect("a resource").attributes)
}

fn attributes(attributes: Vec<KeyValue>) -> Attributes {
    let count = attributes.len();
    let attributes: Attributes =
        attributes.into_iter().map(|attribute| (attribute.key, value(attribute.value))).collect();
    assert_eq!(attributes.len(), count, "an attribute stands there twice: {attributes:?}");
    attributes
}

fn value(value: Option<AnyValue>) -> Value {
    match value.and_then(|value| value.value) {
        None => Value::Null,
        Some(any_value::Value::StringValue(text)) => text.into(),
        Some(any_value::Value::IntValue(number)) => number.into(),
        Some(any_value::Value::DoubleValue(number)) => number.into(),
        Some(any_value::Value::BoolValue(flag)) => flag.into(),
        Some(other) => format!("{other:?}").into(),
    }
}
