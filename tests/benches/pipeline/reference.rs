//! Minimal alternatives to compare with: handlers that answer a delivery or keep
//! it, and consumers that consume events in order.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, pull},
    message::PublishMessage,
};
use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use contract::{names, partitions::Partitions, subject};
use futures::StreamExt;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tests::{gitea::SECRET, process::Process};

/// The stream that [`confirmed_handler`] keeps bodies in.
pub const DELIVERIES: &str = "DELIVERIES";

/// Runs the handler that `args` name; false if they name none.
pub fn run_as_handler(args: &[String]) -> bool {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match args[..] {
        ["read-only-handler"] => runtime.block_on(read_only_handler()),
        ["confirmed-handler", nats_url] => runtime.block_on(confirmed_handler(nats_url)),
        _ => return false,
    }
    true
}

/// Starts one of the handlers below as a process of its own.
pub async fn start(args: &[&str]) -> (Process, SocketAddr) {
    let own = std::env::current_exe().expect("own path");
    let process = Process::start(&own, args[0], &args[1..], &[]);
    let address = process.line_with("127.0.0.1:").await.parse().expect("an address");
    (process, address)
}

/// An axum handler that reads the body and answers 200, keeping nothing.
async fn read_only_handler() {
    let handler = post(|body: Bytes| async move { body.len().to_string() });
    serve(Router::new().route("/webhook/gitea", handler)).await;
}

/// An axum handler that verifies the signature and answers 200 once JetStream
/// has confirmed the body.
async fn confirmed_handler(nats_url: &str) {
    let client = async_nats::connect(nats_url).await.expect("connect");
    let js = jetstream::new(client);
    let stream = jetstream::stream::Config { name: DELIVERIES.into(), ..Default::default() };
    js.get_or_create_stream(stream).await.expect("a stream");
    let key = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any key fits");
    let handler = post(async move |headers: HeaderMap, body: Bytes| {
        let header = |name| headers.get(name).map_or(&b""[..], |value| value.as_bytes());
        let signature = hex::decode(header("X-Gitea-Signature")).unwrap_or_default();
        if key.clone().chain_update(&body).verify_slice(&signature).is_err() {
            return StatusCode::UNAUTHORIZED;
        }
        let id = String::from_utf8_lossy(header("X-Gitea-Delivery"));
        let message = PublishMessage::build().payload(body).message_id(id);
        let confirmed = match js.send_publish(DELIVERIES, message).await {
            Ok(ack) => ack.await.is_ok(),
            Err(_) => false,
        };
        if confirmed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    });
    serve(Router::new().route("/webhook/gitea", handler)).await;
}

/// Serves on a free port, whose address is printed.
async fn serve(router: Router) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    println!("{}", listener.local_addr().expect("an address"));
    axum::serve(listener, router).await.expect("serve");
}

/// Drains the stream with 64 partition consumers that only ack. Returns messages per second.
pub async fn ack_only(js: &jetstream::Context, expected: u64) -> f64 {
    let stream = js.get_stream(names::EVENTS).await.expect("the stream");
    let mut consumers = Vec::new();
    for partition in Partitions::DEFAULT.all() {
        let config = pull::Config {
            durable_name: Some(format!("ack-only-{partition}")),
            filter_subject: subject::partition_filter(partition),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: 1,
            ..Default::default()
        };
        consumers.push(stream.create_consumer(config).await.expect("a consumer"));
    }
    let acked = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = consumers
        .into_iter()
        .map(|consumer| {
            let acked = Arc::clone(&acked);
            tokio::spawn(async move {
                let mut messages = consumer
                    .stream()
                    .max_messages_per_batch(64)
                    .messages()
                    .await
                    .expect("messages");
                while let Some(Ok(message)) = messages.next().await {
                    message.ack().await.expect("ack");
                    acked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    while acked.load(Ordering::Relaxed) < expected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let rate = expected as f64 / started.elapsed().as_secs_f64();
    for task in tasks {
        task.abort();
    }
    for partition in Partitions::DEFAULT.all() {
        stream.delete_consumer(&format!("ack-only-{partition}")).await.expect("delete");
    }
    rate
}
