//! Where Gitea is, and which addresses are still Gitea.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use url::{Host, Url};

use crate::error::ClientError;

/// What cannot stand in a segment of a path (RFC 3986).
const NOT_IN_A_SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The address of a Gitea.
#[derive(Clone, Debug)]
pub(crate) struct Address(Url);

impl Address {
    /// Reads an address.
    pub(crate) fn parse(text: &str) -> Result<Self, ClientError> {
        let url = Url::parse(text).map_err(ClientError::Address)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(ClientError::Unfit("must begin with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ClientError::Unfit("must not hold credentials"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(ClientError::Unfit("must not have a query or a fragment"));
        }
        Ok(Self(url))
    }

    /// The address of an endpoint: the segments below `/api/v1`, and the query.
    pub(crate) fn endpoint(&self, segments: &[&str], query: &[(&str, String)]) -> Url {
        let mut path = format!("{}/api/v1", self.0.path().trim_end_matches('/'));
        for segment in segments {
            path.push('/');
            match *segment {
                // These would be taken for steps in the path, also when they are encoded.
                "." | ".." => path.push_str("%00"),
                name => path.extend(utf8_percent_encode(name, NOT_IN_A_SEGMENT)),
            }
        }
        let mut url = self.0.clone();
        url.set_path(&path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// The address that a redirect at `from` leads to; `Err` with its origin if that is not
    /// Gitea's.
    pub(crate) fn follow(&self, from: &Url, location: &str) -> Result<Url, String> {
        let Ok(mut target) = from.join(location) else { return Err(String::new()) };
        if target.origin() != self.0.origin() {
            return Err(target.origin().ascii_serialization());
        }
        // Credentials of a redirect would become a header beside the token.
        if target.set_username("").is_err() || target.set_password(None).is_err() {
            return Err(String::new());
        }
        Ok(target)
    }

    /// Whether Gitea is on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
            None => false,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(crate) fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    pub(crate) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_keep_the_path_and_escape_names() {
        for (base, segments, expected) in [
            ("http://h", &["version"][..], "http://h/api/v1/version"),
            ("http://h/", &["version"], "http://h/api/v1/version"),
            ("https://h:8443/git/", &["version"], "https://h:8443/git/api/v1/version"),
            (
                "https://h/a/b",
                &["repos", "acme", "docs.site"],
                "https://h/a/b/api/v1/repos/acme/docs.site",
            ),
            (
                "http://h",
                &["a/b", "c?d", "e#f", "g%2fh"],
                "http://h/api/v1/a%2Fb/c%3Fd/e%23f/g%252fh",
            ),
            ("http://h", &["x", "..", ".", "é"], "http://h/api/v1/x/%00/%00/%C3%A9"),
        ] {
            let address = Address::parse(base).unwrap();
            assert_eq!(address.endpoint(segments, &[]).as_str(), expected);
        }
        let address = Address::parse("http://h").unwrap();
        let url = address.endpoint(&["x"], &[("since", "2026-11-26T11:42:00Z".to_owned())]);
        assert_eq!(url.as_str(), "http://h/api/v1/x?since=2026-11-26T11%3A42%3A00Z");
    }

    #[test]
    fn unfit_addresses_are_refused() {
        for text in ["", "h", "ftp://h", "http://u:p@h", "http://u@h", "http://h?q", "http://h#f"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn redirects_stay_on_the_origin() {
        let address = Address::parse("http://h:3000/git").unwrap();
        let from = address.endpoint(&["repos", "old", "name"], &[]);
        for (location, expected) in [
            ("/git/api/v1/repos/acme/core", Ok("http://h:3000/git/api/v1/repos/acme/core")),
            ("other", Ok("http://h:3000/git/api/v1/repos/old/other")),
            ("http://h:3000/x", Ok("http://h:3000/x")),
            ("HTTP://H:3000/x", Ok("http://h:3000/x")),
            ("http://u:p@h:3000/x", Ok("http://h:3000/x")),
            ("//evil/x", Err("http://evil")),
            ("https://h:3000/x", Err("https://h:3000")),
            ("http://h/x", Err("http://h")),
            ("http://h:3001/x", Err("http://h:3001")),
            ("http://h.evil:3000/x", Err("http://h.evil:3000")),
            ("http://[", Err("")),
            ("javascript:alert(1)", Err("null")),
        ] {
            let target = address.follow(&from, location);
            let target = target.as_ref().map(Url::as_str).map_err(String::as_str);
            assert_eq!(target, expected, "{location}");
        }
    }

    #[test]
    fn loopback_is_recognised() {
        for (url, expected) in [
            ("http://localhost:3000", true),
            ("http://git.localhost", true),
            ("http://127.8.9.1", true),
            ("http://[::1]:3000", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example.org", false),
        ] {
            assert_eq!(Address::parse(url).unwrap().is_loopback(), expected, "{url}");
        }
    }
}
