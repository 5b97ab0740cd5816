//! Connections to Gitea: plain or TLS with ring, straight or through a proxy.

use std::{error::Error, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, Uri, body::Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{Connect, HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::{address::Address, error::ClientError};

/// What went wrong with a connection.
pub(crate) type Broken = Box<dyn Error + Send + Sync>;

/// Connections to one Gitea. Those that are idle are kept for a while.
pub(crate) enum Connections {
    Straight(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
    Proxied(Client<HttpsConnector<Tunnel<HttpConnector>>, Full<Bytes>>),
}

impl Connections {
    /// Reads the certificates of the system if the address is `https`. A proxy of `HTTPS_PROXY` or
    /// `ALL_PROXY` is asked for `https` alone, and not for this machine: it would look for Gitea
    /// on its own. Plain HTTP is for a network of one's own, where no proxy has to see the token.
    pub(crate) fn new(address: &Address) -> Result<Self, ClientError> {
        if !address.is_https() {
            return Self::with(address, RootCertStore::empty(), None);
        }
        let proxies = (!address.is_loopback()).then(Matcher::from_env);
        Self::with(address, system_roots()?, proxies)
    }

    /// Trusts `roots`, and goes through what `proxies` name for the address.
    pub(crate) fn with(
        address: &Address,
        roots: RootCertStore,
        proxies: Option<Matcher>,
    ) -> Result<Self, ClientError> {
        let tls = HttpsConnectorBuilder::new()
            .with_tls_config(tls(roots)?)
            .https_or_http()
            .enable_http1();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        let target = Uri::try_from(address.as_str()).map_err(ClientError::Uri)?;
        let Some(proxy) = proxies.and_then(|proxies| proxies.intercept(&target)) else {
            return Ok(Self::Straight(client(tls.wrap_connector(http))));
        };
        if proxy.uri().scheme_str() != Some("http") {
            return Err(ClientError::Proxy);
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), http);
        if let Some(credentials) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(credentials.clone());
        }
        Ok(Self::Proxied(client(tls.wrap_connector(tunnel))))
    }

    /// Sends a request, and waits for the head of its answer.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Broken> {
        Ok(match self {
            Self::Straight(client) => client.request(request).await?,
            Self::Proxied(client) => client.request(request).await?,
        })
    }
}

fn client<C>(connector: C) -> Client<C, Full<Bytes>>
where
    C: Connect + Clone,
{
    Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector)
}

fn tls(roots: RootCertStore) -> Result<ClientConfig, ClientError> {
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(ClientError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The certificate authorities of the system, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
fn system_roots() -> Result<RootCertStore, ClientError> {
    let mut found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(ClientError::NoRoots(found.errors.pop()));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

    use rcgen::CertifiedKey;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;
    use crate::{
        ApiError, Client,
        responder::{TOKEN, options},
    };

    /// Reads up to the end of a head.
    fn head(stream: &mut impl Read) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// A Gitea with TLS, of one connection. Returns its port, its certificate, and the heads it got.
    fn gitea(name: &str, is_proxy: bool) -> (u16, RootCertStore, thread::JoinHandle<Vec<String>>) {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                signing_key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = thread::spawn(move || {
            let mut heads = Vec::new();
            let (mut tcp, _): (TcpStream, _) = listener.accept().unwrap();
            if is_proxy {
                heads.push(head(&mut tcp));
                tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            }
            let connection = ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = StreamOwned::new(connection, tcp);
            heads.push(head(&mut stream));
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"version\":\"1\"}";
            // A client that trusts another certificate is gone.
            let _ = stream.write_all(answer);
            heads
        });
        (port, roots, serving)
    }

    fn connected(url: &str, roots: RootCertStore, proxies: Option<Matcher>) -> Client {
        let address = Address::parse(url).unwrap();
        let connections = Connections::with(&address, roots, proxies).unwrap();
        Client::with(options(url), address, connections).unwrap()
    }

    #[tokio::test]
    async fn tls_trusts_the_roots_alone() {
        let (port, roots, serving) = gitea("localhost", false);
        let client = connected(&format!("https://localhost:{port}"), roots, None);
        assert_eq!(client.version().await.unwrap().value, "1");
        assert!(serving.join().unwrap()[0].contains(TOKEN));

        let (port, _, serving) = gitea("localhost", false);
        let nobody = RootCertStore::empty();
        let client = connected(&format!("https://localhost:{port}"), nobody, None);
        let error = client.version().await.unwrap_err();
        assert!(matches!(error, ApiError::Unreachable(_)), "{error:?}");
        assert_eq!(serving.join().unwrap(), [""]);
    }

    #[tokio::test]
    async fn a_proxy_is_a_tunnel_that_sees_no_token() {
        let (port, roots, serving) = gitea("gitea.test", true);
        let proxy = Matcher::builder().https(format!("http://me:pw@127.0.0.1:{port}")).build();
        let client = connected("https://gitea.test", roots, Some(proxy));
        assert_eq!(client.version().await.unwrap().value, "1");
        let heads = serving.join().unwrap();
        assert!(heads[0].starts_with("CONNECT gitea.test:443 HTTP/1.1"), "{}", heads[0]);
        let credentials = "proxy-authorization: basic bwu6chc=";
        assert!(heads[0].to_lowercase().contains(credentials), "{}", heads[0]);
        assert!(!heads[0].contains(TOKEN) && heads[1].contains(TOKEN), "{heads:?}");
    }

    #[test]
    fn proxies_of_other_kinds_are_refused() {
        for proxy in ["https://127.0.0.1:1", "socks5://127.0.0.1:1"] {
            let address = Address::parse("https://gitea.test").unwrap();
            let proxies = Matcher::builder().https(proxy).build();
            let made = Connections::with(&address, RootCertStore::empty(), Some(proxies));
            assert!(matches!(made.err(), Some(ClientError::Proxy)), "{proxy}");
        }
    }
}
