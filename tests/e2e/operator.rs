//! The operator's listener, as browsers and neighbours on the network meet it.

use std::{net::Ipv4Addr, path::Path};

use reqwest::header::HOST;
use tests::{
    process::Process,
    services::{ingest_at, worker_at},
    system::System,
    temp_dir,
};
use tokio::net::TcpStream;

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
/// Nobody listens there. The listeners are up all the same.
const NOWHERE: &str = "nats://127.0.0.1:1";

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_was_led_to_the_operators_listener_gets_nothing() {
    let names = ["--operator-hosts", "worker,metrics.example.com"];
    let system = System::start_with(&names, &names).await;
    let http = reqwest::Client::new();
    for operator in [system.ingest.operator, system.worker.operator] {
        for path in ["/health", "/health/live", "/health/ready", "/metrics"] {
            for (host, allowed) in [
                (operator.to_string(), true),
                (format!("localhost:{}", operator.port()), true),
                ("worker:8001".into(), true),
                ("metrics.example.com".into(), true),
                (format!("rebind.example.com:{}", operator.port()), false),
                ("ingest".into(), false),
            ] {
                let request = http.get(format!("http://{operator}{path}")).header(HOST, &host);
                let answer = request.send().await.expect("an answer");
                let status = answer.status().as_u16();
                let text = answer.text().await.expect("a text");
                if allowed {
                    assert!(matches!(status, 200 | 503), "{host}{path}: {status} {text}");
                } else {
                    assert_eq!(status, 421, "{host}{path}: {text}");
                    assert!(text.contains("OPERATOR_HOSTS") && !text.contains("coordinator_"));
                }
            }
        }
    }
}

#[tokio::test]
async fn outside_of_containers_operators_ports_are_on_loopback() {
    let data = [temp_dir(), temp_dir()];
    let ingest = ingest_at(Path::new(EXE), NOWHERE, data[0].path(), &[], &[]);
    let worker = worker_at(Path::new(EXE), NOWHERE, &[], &[]);
    let environment = [
        ("DATA_DIR", data[1].path().to_str().expect("UTF-8")),
        ("NATS_URL", NOWHERE),
        ("PORT", "0"),
        ("OPERATOR_PORT", "0"),
        ("LOG_FORMAT", "json"),
    ];
    let up = Process::start(Path::new(EXE), "up", &[], &environment);
    for service in [&ingest, &worker, &up] {
        let bound = service.address_in("operator listens").await;
        assert_eq!(bound.ip(), Ipv4Addr::LOCALHOST);
        let elsewhere = (Ipv4Addr::new(127, 0, 0, 2), bound.port());
        assert!(TcpStream::connect(elsewhere).await.is_err(), "{elsewhere:?} is open");
    }
}
