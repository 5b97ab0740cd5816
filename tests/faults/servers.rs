//! The broker: one nats-server or a cluster of three, each behind proxies.

use std::{net::TcpListener, path::Path, time::Duration};

use async_nats::jetstream::{self, stream::DiscardPolicy};
use futures::future::join_all;
use tests::nats::Nats;

use crate::{
    fleet::ToBroker,
    proxy::{Line, Proxy},
};

/// The streams whose limits and leaders the faults affect.
pub const EVENTS: &str = "GITEA_ISSUES";
/// See [`EVENTS`].
pub const CHANGES: &str = "GITEA_CHANGES";
/// The stream under the bucket of issue states.
pub const STATES: &str = "KV_GITEA_ISSUE_STATE";

/// The servers and the lines to them.
pub struct Servers {
    /// One, or three.
    pub nodes: Vec<Nats>,
    for_ingests: Vec<Proxy>,
    for_workers: Vec<Proxy>,
}

impl Servers {
    /// Starts them.
    pub async fn start(cluster: bool) -> Self {
        let mut nodes: Vec<Nats> =
            (0..if cluster { 3 } else { 1 }).map(|_| Nats::prepared("")).collect();
        if cluster {
            acquaint(&mut nodes);
        }
        join_all(nodes.iter_mut().map(Nats::restart)).await;
        let (mut for_ingests, mut for_workers) = (Vec::new(), Vec::new());
        for node in &nodes {
            for_ingests.push(Proxy::start(node.port()).await);
            for_workers.push(Proxy::start(node.port()).await);
        }
        Self { nodes, for_ingests, for_workers }
    }

    /// What services need to reach the broker.
    pub fn to_broker(&self) -> ToBroker {
        let urls = |proxies: &[Proxy]| {
            let urls = proxies.iter().map(|proxy| format!("nats://{}", proxy.address));
            urls.collect::<Vec<_>>().join(",")
        };
        ToBroker {
            for_ingests: urls(&self.for_ingests),
            for_workers: urls(&self.for_workers),
            replicas: if self.nodes.len() == 3 { "3" } else { "1" },
        }
    }

    /// URLs of the servers themselves, for observers.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Nats::url).collect()
    }

    /// The lines of ingests, of workers, or of both.
    fn lines(&self, ingests: bool, workers: bool) -> impl Iterator<Item = &Proxy> {
        let ingests = self.for_ingests.iter().filter(move |_| ingests);
        ingests.chain(self.for_workers.iter().filter(move |_| workers))
    }

    /// Sets what these lines do from now on.
    pub fn set_lines(&self, ingests: bool, workers: bool, line: Line) {
        self.lines(ingests, workers).for_each(|proxy| proxy.set(line));
    }

    /// Cuts all connections on these lines.
    pub fn cut_lines(&self, ingests: bool, workers: bool) {
        self.lines(ingests, workers).for_each(Proxy::cut);
    }

    /// Kills all servers.
    pub fn kill(&mut self) {
        self.nodes.iter_mut().for_each(Nats::kill);
    }

    /// Starts all servers. Servers that run are restarted.
    pub async fn restart(&mut self) {
        join_all(self.nodes.iter_mut().map(Nats::restart)).await;
    }
}

/// Configures the servers as a cluster.
fn acquaint(nodes: &mut [Nats]) {
    let listeners: Vec<_> =
        nodes.iter().map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let port = |n: usize| listeners[n].local_addr().expect("its address").port();
    let routes: Vec<_> =
        (0..nodes.len()).map(|n| format!("nats://127.0.0.1:{}", port(n))).collect();
    for (n, node) in nodes.iter_mut().enumerate() {
        // Not advertised, since clients would bypass the proxies.
        node.set_extra(&format!(
            "server_name: n{n}\ncluster {{ name: c, no_advertise: true, listen: \"127.0.0.1:{}\", routes: [{}] }}",
            port(n),
            routes.join(", ")
        ));
    }
}

/// A separate connection to any of the servers, with time for elections.
pub async fn connect(urls: &[String]) -> jetstream::Context {
    let servers: Vec<async_nats::ServerAddr> =
        urls.iter().map(|url| url.parse().expect("a URL")).collect();
    let client = async_nats::ConnectOptions::new()
        .retry_on_initial_connect()
        .reconnect_delay_callback(|_| Duration::from_millis(200))
        .connect(servers)
        .await
        .expect("a client");
    jetstream::ContextBuilder::new().timeout(Duration::from_secs(3)).build(client)
}

/// The number of the server that leads a stream.
pub async fn stream_leader(js: &jetstream::Context, stream: &str) -> Option<usize> {
    let stream = js.get_stream(stream).await.ok()?;
    node(stream.cached_info().cluster.as_ref()?.leader.as_deref()?)
}

/// The number of the server that leads a partition's consumer.
pub async fn consumer_leader(js: &jetstream::Context, partition: u8) -> Option<usize> {
    let stream = js.get_stream(EVENTS).await.ok()?;
    let info = stream.consumer_info(format!("worker-{partition:02}")).await.ok()?;
    node(info.cluster?.leader.as_deref()?)
}

fn node(name: &str) -> Option<usize> {
    name.strip_prefix('n')?.parse().ok()
}

/// Makes a stream refuse new messages, or take all again.
pub async fn limit(js: &jetstream::Context, stream: &str, full: bool) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let found = js.get_stream(stream).await.map_err(|e| text(&e))?;
    let info = found.cached_info();
    let mut config = info.config.clone();
    config.max_messages = if full { info.state.messages.max(1) as i64 } else { -1 };
    // Never drop the oldest message instead: the test itself would cause a loss.
    config.discard = match stream {
        CHANGES if !full => DiscardPolicy::Old,
        _ => DiscardPolicy::New,
    };
    js.update_stream(config).await.map(drop).map_err(|e| text(&e))
}

/// Copies a directory as it is.
pub fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.expect("run cp").success(), "cp");
}
