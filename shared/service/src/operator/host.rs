//! The `Host` of requests to the operator's listener. A page in a browser can have its own name
//! resolve to an address of this machine (DNS rebinding) and then read what is here. The browser
//! sends that name, so a request under an unknown name gets nothing.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, header::HOST, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::settings::Show;

/// Names of the operator's listener, besides `localhost` and IP addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNames(Vec<String>);

impl HostNames {
    /// Reads names with commas between.
    ///
    /// # Errors
    /// If one of them is no name, but an URL or a pattern for example.
    pub fn read(text: &str) -> Result<Self, String> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(name_of).collect::<Option<_>>().map(Self).ok_or_else(|| {
            "is not a list of host names, without ports and with commas between".into()
        })
    }

    /// Whether a request with this target and these headers is meant for the listener. A request
    /// without any name does not come from a browser.
    fn allow(&self, target: &Uri, headers: &HeaderMap) -> bool {
        let in_headers = headers.get_all(HOST).iter().map(|value| value.to_str().ok());
        let in_target = target.authority().map(|authority| Some(authority.as_str()));
        in_headers.chain(in_target).all(|host| host.is_some_and(|host| self.has(host)))
    }

    /// Whether this is an address, `localhost` or one of the names, with or without a port.
    fn has(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let host = authority.host();
        let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if address.unwrap_or(host).parse::<IpAddr>().is_ok() {
            return true;
        }
        name_of(host).is_some_and(|name| name == "localhost" || self.0.contains(&name))
    }
}

/// A name as it is compared: in small letters, without the dot of the root.
fn name_of(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (!name.is_empty() && name.bytes().all(good)).then_some(name)
}

impl Show for HostNames {
    fn show(&self) -> String {
        self.0.join(",")
    }
}

/// Answers 421 to a request under another name.
pub(super) async fn check(
    State(names): State<Arc<HostNames>>,
    request: Request,
    next: Next,
) -> Response {
    if names.allow(request.uri(), request.headers()) {
        return next.run(request).await;
    }
    let text =
        "nothing is here under this name; ask by address, or add the name to OPERATOR_HOSTS\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        for (text, names) in [
            ("ingest, worker", Some("ingest,worker")),
            ("Ingest.Example.com.,", Some("ingest.example.com")),
            (",", Some("")),
            ("http://ingest", None),
            ("ingest:8001", None),
            ("*.example.com", None),
            ("a b", None),
        ] {
            let read = HostNames::read(text).ok();
            assert_eq!(read.map(|names| names.show()).as_deref(), names, "{text}");
        }
    }

    #[test]
    fn only_addresses_localhost_and_the_names_of_the_list_are_let_in() {
        let names = HostNames::read("worker,metrics.example.com").expect("names");
        for (hosts, target, allowed) in [
            (vec!["127.0.0.1:8001"], "/health", true),
            (vec!["10.1.2.3"], "/health", true),
            (vec!["[::1]:8001"], "/health", true),
            (vec!["[fd00::1]"], "/health", true),
            (vec!["localhost:8001"], "/health", true),
            (vec!["LocalHost."], "/health", true),
            (vec!["worker:8001"], "/health", true),
            (vec!["Metrics.Example.com"], "/health", true),
            (vec![], "/health", true),
            (vec!["rebind.example.com:8001"], "/health", false),
            (vec!["127.0.0.1.example.com"], "/health", false),
            (vec!["example.com"], "/health", false),
            (vec!["worker.example.com"], "/health", false),
            (vec!["localhost.example.com"], "/health", false),
            (vec!["localhost", "example.com"], "/health", false),
            (vec!["localhost"], "http://example.com/health", false),
            (vec![""], "/health", false),
            (vec!["a b"], "/health", false),
            (vec!["localhost/x"], "/health", false),
        ] {
            let mut headers = HeaderMap::new();
            for host in &hosts {
                headers.append(HOST, HeaderValue::from_str(host).expect("a value"));
            }
            let target = target.parse().expect("a target");
            assert_eq!(names.allow(&target, &headers), allowed, "{hosts:?} {target}");
        }
    }
}
