//! Connections for calls: plain or TLS with ring, straight or through the proxy of the environment.
//! Each call has its own, so that a receiver that is replaced is found at once.

use std::{error::Error, io, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{Connect, HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::Matcher,
    },
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use url::{Host, Url};

type Broken = Box<dyn Error + Send + Sync>;

/// Sends a request, and waits for the head of its answer. The certificates of the system are read
/// for `https`, at each call, since they are replaced while the role runs. A proxy is asked for
/// `https` alone, and not for this machine.
pub(super) async fn send(
    url: &Url,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Broken> {
    if url.scheme() != "https" {
        return answer(HttpConnector::new(), request).await;
    }
    let roots = tokio::task::spawn_blocking(system_roots).await??;
    let proxies = (!is_loopback(url)).then(Matcher::from_env);
    send_tls(roots, proxies, request).await
}

async fn send_tls(
    roots: RootCertStore,
    proxies: Option<Matcher>,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Broken> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let Some(proxy) = proxies.and_then(|proxies| proxies.intercept(request.uri())) else {
        return answer(tls.wrap_connector(http), request).await;
    };
    if proxy.uri().scheme_str() != Some("http") {
        return Err("the proxy for https has another scheme than http://".into());
    }
    let mut tunnel = Tunnel::new(proxy.uri().clone(), http);
    if let Some(credentials) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(credentials.clone());
    }
    answer(tls.wrap_connector(tunnel), request).await
}

async fn answer<C>(
    connector: C,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Broken>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    Ok(client.request(request).await?)
}

fn system_roots() -> Result<RootCertStore, Broken> {
    let mut found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let none = "no certificate authorities found on this system, which https needs";
    Err(found.errors.pop().map_or_else(|| io::Error::other(none).into(), Into::into))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use rcgen::CertifiedKey;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    /// A receiver with TLS, of one connection. Returns its port and its certificate.
    fn receiver() -> (u16, RootCertStore, thread::JoinHandle<()>) {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a root");
        let key = signing_key.serialize_der().try_into().expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serving = thread::spawn(move || {
            let (tcp, _) = listener.accept().expect("a connection");
            let connection = ServerConnection::new(Arc::new(config)).expect("TLS");
            let mut stream = StreamOwned::new(connection, tcp);
            let mut byte = [0];
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0)
            {
                head.push(byte[0]);
            }
            // A client that trusts another certificate is gone.
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
        });
        (port, roots, serving)
    }

    #[tokio::test]
    async fn tls_trusts_the_roots_alone() {
        for is_trusted in [true, false] {
            let (port, roots, serving) = receiver();
            let request = Request::post(format!("https://localhost:{port}/hook"));
            let request = request.body(Full::default()).expect("a request");
            let roots = if is_trusted { roots } else { RootCertStore::empty() };
            let answer = send_tls(roots, None, request).await;
            assert_eq!(answer.is_ok(), is_trusted, "{answer:?}");
            serving.join().expect("no panic");
        }
    }
}
