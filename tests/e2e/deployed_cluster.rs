//! Three servers with the configuration of the cluster that is deployed: TLS for clients and between
//! the servers, and the deployed accounts.

use async_nats::{ConnectOptions, jetstream};
use contract::names;
use tests::{
    bus,
    certificates::Certificates,
    check,
    load::{Load, stories},
    nats::Nats,
    system::settled,
    temp_dir, wait,
};

use crate::{
    affinity,
    broker_roles::{admin, start_at, users},
    cluster::{cluster_of, leader},
};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/nats/cluster.conf");

/// The deployed configuration with another port, other files, and without what only the
/// containers have (`nats.conf`).
fn config(certificates: &Certificates, port: u16, ports: [u16; 3]) -> String {
    let routes = ports.map(|port| format!("\"nats://routes:x@127.0.0.1:{port}\"")).join(", ");
    let variables = format!("ROUTES_PASSWORD: x\nROUTES: [{routes}]\n");
    let mut config = std::fs::read_to_string(CONFIG).expect("cluster.conf");
    for (deployed, here) in [
        ("include nats.conf", users()),
        ("port: 6222", format!("listen: \"127.0.0.1:{port}\"")),
        ("/run/tls/certificate.pem", certificates.path("server.pem")),
        ("/run/tls/key.pem", certificates.path("server-key.pem")),
        ("/run/tls/ca.pem", certificates.path("ca.pem")),
    ] {
        assert!(config.contains(deployed), "{deployed}");
        config = config.replace(deployed, &here);
    }
    variables + &config
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deployed_cluster_speaks_tls_and_loses_nothing_with_a_node() {
    let (certificates, data) = (Certificates::new(), temp_dir());
    let ca = certificates.path("ca.pem");
    let prepared = |_| {
        let (mut nats, ca) = (Nats::prepared(""), ca.clone());
        nats.set_options(move || {
            admin().add_root_certificates(ca.clone().into()).require_tls(true)
        });
        nats
    };
    let servers = (0..3).map(prepared).collect();
    let mut servers = cluster_of(servers, |port, ports| config(&certificates, port, ports)).await;

    let plain = ConnectOptions::with_user_and_password("reader".into(), "reader-password".into());
    assert!(plain.connect(servers[0].url()).await.is_err(), "it takes a client without TLS");
    let announced = servers[0].client().await.server_info().connect_urls;
    assert_eq!(announced, Vec::<String>::new(), "clients are told addresses");

    let urls = servers.iter().map(|server| server.url().replace("nats://", "tls://"));
    let url = urls.collect::<Vec<_>>().join(",");
    let more = [("NATS_CA_FILE", ca.as_str()), ("STREAM_REPLICAS", "3"), ("ACK_WAIT_SECS", "2")];
    let role = |service, user| start_at(&url, service, &[], user, &data, &more);
    let mut created = role("create-streams", "admin");
    assert_eq!(created.exited().await.code(), Some(0), "{}", created.output());
    let ingest = role("ingest", "ingest");
    let workers = [(); 2].map(|()| role("worker", "worker"));
    for worker in &workers {
        affinity::is_ready(worker).await;
    }

    let address = ingest.address_in("ingest listens").await;
    let load = Load::start(&[address], 5, stories(1, 20, 50));
    load.accepted(300).await;
    let js = jetstream::new(servers[0].client().await);
    let killed = wait::until("a leader", || leader(&js, names::EVENTS)).await;
    servers[killed].kill();
    let sent = load.finish().await;
    assert_eq!((sent.accepted.len(), sent.unanswered.len()), (1000, 0));
    let js = jetstream::new(servers[(killed + 1) % 3].client().await);
    settled(&js, 1000).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 980);
    for process in workers.iter().chain([&ingest]) {
        let output = process.output();
        assert!(!output.contains("NATS denies"), "{output}");
    }
}
