//! Addresses of the broker's servers.

use std::{fmt, ops::Deref};

use async_nats::ServerAddr;

use crate::settings::Show;

/// Addresses of one server, or of the nodes of a cluster. They are printed without the user and the
/// password that a URL may hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Servers(Vec<ServerAddr>);

impl From<Vec<ServerAddr>> for Servers {
    fn from(servers: Vec<ServerAddr>) -> Self {
        Self(servers)
    }
}

impl Default for Servers {
    /// A server on this machine.
    fn default() -> Self {
        Self("nats://127.0.0.1:4222".parse().into_iter().collect())
    }
}

impl Deref for Servers {
    type Target = [ServerAddr];

    fn deref(&self) -> &[ServerAddr] {
        &self.0
    }
}

impl Servers {
    /// The addresses without user and password. The client takes these from its options, and would
    /// print addresses as they are.
    pub(super) fn without_login(&self) -> Vec<ServerAddr> {
        let stripped = |server: &ServerAddr| {
            let mut url = server.clone().into_inner();
            url.set_username("").and_then(|()| url.set_password(None)).ok()?;
            ServerAddr::from_url(url).ok()
        };
        self.0.iter().filter_map(stripped).collect()
    }

    /// The URLs with commas between, each with `login` in front of its host.
    fn urls(&self, login: impl Fn(&ServerAddr) -> String) -> String {
        let urls = self
            .0
            .iter()
            .map(|server| format!("{}://{}{}", server.scheme(), login(server), place(server)));
        urls.collect::<Vec<_>>().join(",")
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.urls(|_| String::new()))
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Servers({self})")
    }
}

impl Show for Servers {
    /// A user without a password is a token.
    fn show(&self) -> String {
        self.urls(|server| match (server.username(), server.password()) {
            (None, _) => String::new(),
            (Some(_), None) => "(hidden)@".into(),
            (Some(user), Some(_)) => format!("{user}:(hidden)@"),
        })
    }
}

/// Host and port of a server. An IPv6 address stands in brackets.
pub(super) fn place(server: &ServerAddr) -> String {
    let host = server.host();
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("{host}:{}", server.port())
}

/// Reads the URLs of servers with commas between. Without a scheme nats:// is meant.
pub(super) fn servers(text: &str) -> Result<Servers, String> {
    let items: Vec<_> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    let servers: Result<Vec<_>, _> = items.iter().map(|item| server(item)).collect();
    match servers? {
        none if none.is_empty() => Err("names no server".into()),
        servers => Ok(Servers(servers)),
    }
}

/// Reads the URL of a server. A problem never shows the URL, since it may hold a password.
fn server(text: &str) -> Result<ServerAddr, String> {
    if text.contains(char::is_whitespace) {
        return Err("has a space in it; several servers go with commas between".into());
    }
    match text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
        None | Some("nats" | "tls") => {}
        Some("ws" | "wss") => {
            return Err("is for WebSocket, which is not supported; use nats:// or tls://".into());
        }
        Some(_) => {
            return Err(
                "has another scheme than nats:// and tls://, such as nats://host:4222".into()
            );
        }
    }
    let not_a_url = "is not a URL such as nats://host:4222; \
        in a user or a password / ? # @ : and % are written as %2F %3F %23 %40 %3A and %25";
    let server: ServerAddr = text.parse().map_err(|_| not_a_url)?;
    let url = server.clone().into_inner();
    let has_more =
        !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some();
    if server.host().is_empty() || server.port() == 0 || has_more {
        return Err(not_a_url.into());
    }
    // The password would not be used.
    if server.username().is_none() && server.password().is_some() {
        return Err("holds a password without a user".into());
    }
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_servers_are_read_and_shown_without_what_is_secret() {
        for (text, expected) in [
            ("nats://h", Ok("nats://h:4222")),
            ("host:4222", Ok("nats://host:4222")),
            ("host", Ok("nats://host:4222")),
            ("10.0.0.1:5", Ok("nats://10.0.0.1:5")),
            ("nats://[::1]:5/", Ok("nats://[::1]:5")),
            ("tls://h", Ok("tls://h:4222")),
            ("a, nats://b:1 ,tls://c", Ok("nats://a:4222,nats://b:1,tls://c:4222")),
            ("a,,b,", Ok("nats://a:4222,nats://b:4222")),
            ("nats://u:s3cr3t@h", Ok("nats://h:4222")),
            ("nats://s3cr3t@h:1,u:s3cr3t@i", Ok("nats://h:1,nats://i:4222")),
            ("nats://u:%23s3cr3t%2f@h", Ok("nats://h:4222")),
            (",", Err("names no server")),
            ("nats://a b", Err("has a space in it")),
            ("nats://a nats://u:s3cr3t@b", Err("has a space in it")),
            ("nats://", Err("is not a URL")),
            ("nats://:4222", Err("is not a URL")),
            ("nats://h:70000", Err("is not a URL")),
            ("nats://h:0", Err("is not a URL")),
            ("nats://h:port", Err("is not a URL")),
            ("nats:h:4222", Err("is not a URL")),
            ("nats//h:4222", Err("is not a URL")),
            ("nats://h/path", Err("is not a URL")),
            ("nats://u:s3cr3t#x@h", Err("is not a URL")),
            ("nats://u:1234#s3cr3t@h", Err("is not a URL")),
            ("nats://u:1234/s3cr3t@h", Err("is not a URL")),
            ("nats://u:1234?s3cr3t@h", Err("is not a URL")),
            ("http://u:s3cr3t@h:4222", Err("has another scheme")),
            ("tcp://10.0.0.1:4222", Err("has another scheme")),
            ("nats://:s3cr3t@h", Err("holds a password without a user")),
            ("ws://h", Err("is for WebSocket")),
            ("wss://u:s3cr3t@h", Err("is for WebSocket")),
            ("nats://h,ftp://i", Err("has another scheme")),
        ] {
            match (servers(text), expected) {
                (Ok(servers), Ok(expected)) => {
                    assert_eq!(servers.to_string(), expected);
                    assert_eq!(format!("{servers:?}"), format!("Servers({expected})"));
                    let stripped = format!("{:?}", servers.without_login());
                    assert!(!stripped.contains("s3cr3t"), "{stripped}");
                    assert_eq!(Servers(servers.without_login()).to_string(), expected);
                    assert!(!servers.show().contains("s3cr3t"), "{}", servers.show());
                }
                (Err(problem), Err(part)) => {
                    assert!(problem.contains(part) && !problem.contains("s3cr3t"), "{problem}");
                }
                (read, _) => panic!("{text}: {read:?}"),
            }
        }
    }

    #[test]
    fn the_place_of_a_server_can_be_read_back() {
        for (text, expected) in [("nats://h", "h:4222"), ("[::1]:1", "[::1]:1")] {
            let server: ServerAddr = text.parse().expect(text);
            assert_eq!(place(&server), expected);
        }
    }

    #[test]
    fn a_url_is_shown_with_its_user_and_without_a_password_or_a_token() {
        for (text, shown) in [
            ("nats://h", "nats://h:4222"),
            ("nats://ingest:s3cr3t@h,tls://i", "nats://ingest:(hidden)@h:4222,tls://i:4222"),
            ("nats://s3cr3t@[::1]", "nats://(hidden)@[::1]:4222"),
        ] {
            assert_eq!(servers(text).expect(text).show(), shown);
        }
    }
}
