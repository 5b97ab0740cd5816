//! Three servers and streams of three replicas: one of them dies.

use async_nats::jetstream;
use contract::names;
use futures::future::join_all;
use tests::{
    bus, check,
    load::{Load, stories},
    nats::Nats,
    system::{ingest_config, settled, start_ingest, start_worker, worker_config},
    temp_dir, wait,
};

/// Three servers that know each other, `n0`, `n1` and `n2`.
async fn cluster() -> Vec<Nats> {
    let servers = (0..3).map(|_| Nats::prepared("")).collect();
    cluster_of(servers, |port, ports| {
        let routes = ports.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
        format!("cluster {{ name: c, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}")
    })
    .await
}

/// Starts `servers` as `n0`, `n1` and `n2`. `config` gets the port for routes of one, and of all.
pub(crate) async fn cluster_of(
    mut servers: Vec<Nats>,
    config: impl Fn(u16, [u16; 3]) -> String,
) -> Vec<Nats> {
    // The ports for clients are chosen already. Open listeners make the ports of routes differ.
    let listeners: Vec<_> =
        (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let port = |n: usize| listeners[n].local_addr().expect("its address").port();
    let ports = [0, 1, 2].map(port);
    for (n, server) in servers.iter_mut().enumerate() {
        server.set_extra(&format!("server_name: n{n}\n{}", config(ports[n], ports)));
    }
    drop(listeners);
    join_all(servers.iter_mut().map(Nats::restart)).await;
    servers
}

pub(crate) async fn leader(js: &jetstream::Context, stream: &str) -> Option<usize> {
    let mut stream = js.get_stream(stream).await.ok()?;
    let leader = stream.info().await.ok()?.cluster.as_ref()?.leader.clone()?;
    leader.strip_prefix('n')?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_the_events_may_die_under_load() {
    let mut servers = cluster().await;
    let urls = servers.iter().map(Nats::url).collect::<Vec<_>>().join(",");
    let data = temp_dir();
    let mut ingest = ingest_config(&urls, data.path(), &[]);
    let mut worker = worker_config(&urls, &["--ack-wait-secs", "2"]);
    ingest.common.streams.stream_replicas = 3;
    worker.common.streams.stream_replicas = 3;
    let ingest = start_ingest(&ingest).await;
    let worker = start_worker(&worker).await;
    wait::until_equal("all partitions to be consumed", 200, || async {
        worker.get("/health/ready").await.0
    })
    .await;

    let load = Load::start(&[ingest.address], 5, stories(1, 20, 50));
    load.accepted(300).await;
    let js = jetstream::new(servers[0].client().await);
    let killed = wait::until("a leader", || leader(&js, names::EVENTS)).await;
    servers[killed].kill();
    let sent = load.finish().await;
    assert_eq!((sent.accepted.len(), sent.unanswered.len()), (1000, 0));
    let js = jetstream::new(servers[(killed + 1) % 3].client().await);
    let follower = wait::until("another leader", || leader(&js, names::EVENTS)).await;
    assert_ne!(follower, killed);
    settled(&js, 1000).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 980);
}
