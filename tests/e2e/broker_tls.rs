//! Once TLS is asked for, nothing takes it off a connection to the broker.

use std::{path::Path, time::Duration};

use async_nats::ConnectOptions;
use tests::{certificates::Certificates, nats::Nats, process::Process, temp_dir, wait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
const PASSWORD: &str = "never-in-the-clear";

/// Speaks NATS without TLS, and passes on what each client sends first.
async fn plaintext_listener() -> (u16, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let (sender, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let info = r#"{"server_id":"X","version":"2.15.1","proto":1,"max_payload":1048576,"headers":true}"#;
                let _ = stream.write_all(format!("INFO {info}\r\n").as_bytes()).await;
                let mut bytes = vec![0; 4096];
                let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut bytes));
                if let Ok(Ok(count)) = read.await {
                    bytes.truncate(count);
                    let _ = sender.send(bytes);
                }
            });
        }
    });
    (port, heard)
}

async fn is_announced(nats: &Nats, port: u16) {
    wait::until("the address to be announced", || async {
        let announced = nats.client().await.server_info().connect_urls;
        announced.iter().any(|url| url.ends_with(&format!(":{port}"))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_a_server_announces_is_not_taken_as_plaintext() {
    let (certificates, data) = (Certificates::new(), temp_dir());
    let ca = certificates.path("ca.pem");
    let ((trap, mut heard), route) = (plaintext_listener().await, tests::free_port());
    let node = |name: &str, cluster: &str| {
        let mut nats = Nats::prepared(&format!(
            "server_name: {name}\n\
             authorization {{ user: u, password: {PASSWORD:?} }}\n\
             tls {{ cert_file: {:?}, key_file: {:?} }}\n\
             {cluster}",
            certificates.path("server.pem"),
            certificates.path("server-key.pem"),
        ));
        let trusted = ca.clone();
        nats.set_options(move || {
            ConnectOptions::new()
                .add_root_certificates(trusted.clone().into())
                .require_tls(true)
                .user_and_password("u".into(), PASSWORD.into())
        });
        nats
    };
    let mut nats = node("a", &format!("cluster {{ name: c, listen: \"127.0.0.1:{route}\" }}"));
    nats.restart_without_jetstream().await;
    // A node of the cluster whose address leads elsewhere.
    let mut other = node(
        "b",
        &format!(
            "cluster {{ name: c, listen: \"127.0.0.1:-1\", routes: [\"nats://127.0.0.1:{route}\"] }}\n\
             client_advertise: \"127.0.0.1:{trap}\""
        ),
    );
    other.restart_without_jetstream().await;
    is_announced(&nats, trap).await;
    let url = nats.url().replace("nats://", "tls://");
    for more in [
        // The system's certificates, as for a broker with one of a public authority.
        &[("SSL_CERT_FILE", ca.as_str())][..],
        &[("NATS_CA_FILE", ca.as_str())],
    ] {
        let mut environment = vec![
            ("NATS_URL", url.as_str()),
            ("NATS_USER", "u"),
            ("NATS_PASSWORD", PASSWORD),
            ("GITEA_URL", "http://localhost:3000"),
            ("OPERATOR_PORT", "0"),
            ("LOG_FORMAT", "json"),
            ("DATA_DIR", data.path().to_str().expect("UTF-8")),
        ];
        environment.extend(more);
        let worker = Process::start(Path::new(EXE), "worker", &[], &environment);
        worker.line_with("connected to NATS").await;
        nats.kill();
        // It tries the address that was announced.
        let first = wait::within("a connection to the plaintext listener", heard.recv()).await;
        let first = first.expect("the listener runs");
        assert_eq!(first[0], 0x16, "no TLS handshake: {:?}", String::from_utf8_lossy(&first));
        drop(worker);
        while let Ok(bytes) = heard.try_recv() {
            assert!(!String::from_utf8_lossy(&bytes).contains("CONNECT"));
        }
        nats.restart_without_jetstream().await;
        is_announced(&nats, trap).await;
    }
}
