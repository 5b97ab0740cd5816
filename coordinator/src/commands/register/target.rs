//! The address that hooks send to: whether another text names the same one, and what may keep
//! Gitea from reaching it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

/// Where ingest takes deliveries.
const PATH: &str = "/webhook/gitea";

/// The address that hooks are to send to. It holds no user, no query and no fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    text: String,
    url: Url,
}

/// How another address compares with the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    /// Another receiver.
    Other,
    /// The same receiver, but a request for a path in a form that it may not know.
    SameInAnotherForm,
    /// The same requests to the same receiver.
    Same,
}

/// Where a host is, as far as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Loopback,
    Private,
    /// A name that is known in a local network only, probably.
    LocalName,
    Public,
}

impl Target {
    /// Reads an address that `service::settings::http_url` has let through.
    ///
    /// # Errors
    /// If it is no address.
    pub(super) fn parse(text: &str) -> Result<Self, url::ParseError> {
        Ok(Self { text: text.to_owned(), url: Url::parse(text)? })
    }

    /// As it was given.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Compares the address of a hook. A user in it makes no difference, for that is only a header
    /// more; a query does, since a proxy may choose the receiver by it.
    pub(super) fn likeness(&self, hook: &str) -> Likeness {
        let Ok(url) = Url::parse(hook) else { return Likeness::Other };
        if receiver(&url) != receiver(&self.url) {
            Likeness::Other
        } else if url.path() == self.url.path() {
            Likeness::Same
        } else {
            Likeness::SameInAnotherForm
        }
    }

    /// The target with the user of the address that a hook has now.
    pub(super) fn with_user_of(&self, hook: &str) -> String {
        let old = Url::parse(hook).ok().filter(|old| !old.username().is_empty());
        let Some(old) = old else { return self.text.clone() };
        let mut url = self.url.clone();
        // Both succeed for http and https.
        let set = url.set_username(old.username()).and_then(|()| url.set_password(old.password()));
        set.map_or_else(|()| self.text.clone(), |()| url.into())
    }

    /// What may keep deliveries of the Gitea at `gitea_url` from arriving, or what others see of
    /// them. Nothing of it can be asked of Gitea.
    pub(super) fn warnings(&self, gitea_url: &str) -> Vec<String> {
        let gitea = Url::parse(gitea_url).ok();
        let of_gitea = gitea.as_ref().map(reach);
        let reach = reach(&self.url);
        let mut warnings = Vec::new();
        if reach == Reach::Loopback && of_gitea.is_some_and(|gitea| gitea != Reach::Loopback) {
            warnings.push(format!(
                "{self} is a loopback address, which leads Gitea to its own machine; set --url \
                 to the address by which Gitea reaches this one, unless both are on one machine"
            ));
        }
        let allow = match reach {
            Reach::Loopback => Some(("a loopback", "loopback")),
            Reach::Private => Some(("a private", "private")),
            Reach::LocalName => Some(("probably a private", "private")),
            Reach::Public => None,
        };
        if let Some((kind, word)) = allow {
            warnings.push(format!(
                "{self} is {kind} address, which Gitea blocks unless ALLOWED_HOST_LIST in its \
                 app.ini has {word} or the host; the API does not show that list, only Recent \
                 deliveries of the hook show what it blocks"
            ));
        }
        let is_encrypted = |url: &Url| url.scheme() == "https";
        if gitea.as_ref().is_some_and(is_encrypted)
            && !is_encrypted(&self.url)
            && reach != Reach::Loopback
        {
            warnings.push(format!(
                "{self} is not encrypted, though Gitea is at https; issues can be read on the way"
            ));
        }
        if self.url.path() != PATH {
            warnings.push(format!(
                "{self} has another path than {PATH}, the only one that ingest takes deliveries \
                 at; that is right only if a proxy rewrites it"
            ));
        }
        warnings
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What decides who receives a request. The parser has written scheme and host in lower case and
/// left out a port that is the scheme's own.
fn receiver(url: &Url) -> (&str, Option<&str>, Option<u16>, Vec<Vec<u8>>, &str) {
    let host = url.host_str().map(|host| host.strip_suffix('.').unwrap_or(host));
    let decoded = |segment| percent_decode_str(segment).collect();
    let mut path: Vec<Vec<u8>> = url.path_segments().into_iter().flatten().map(decoded).collect();
    while path.last().is_some_and(Vec::is_empty) {
        path.pop();
    }
    (url.scheme(), host, url.port_or_known_default(), path, url.query().unwrap_or_default())
}

fn reach(url: &Url) -> Reach {
    let name = match url.host() {
        Some(Host::Domain(name)) => name.strip_suffix('.').unwrap_or(name),
        Some(Host::Ipv4(address)) => return reach_of(address.into()),
        Some(Host::Ipv6(address)) => return reach_of(address.into()),
        None => return Reach::Public,
    };
    let ends = |suffix: &&str| name.ends_with(*suffix);
    if name == "localhost" || name.ends_with(".localhost") {
        Reach::Loopback
    } else if !name.contains('.') || [".local", ".internal", ".lan"].iter().any(ends) {
        Reach::LocalName
    } else {
        Reach::Public
    }
}

fn reach_of(address: IpAddr) -> Reach {
    match address.to_canonical() {
        // What listens on all addresses is often named by that.
        address if address.is_loopback() || address.is_unspecified() => Reach::Loopback,
        IpAddr::V4(address) if address.is_private() || address.is_link_local() => Reach::Private,
        IpAddr::V6(address) if is_private(address) => Reach::Private,
        _ => Reach::Public,
    }
}

fn is_private(address: Ipv6Addr) -> bool {
    address.is_unique_local() || address.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        Target::parse(text).expect("a URL")
    }

    #[test]
    fn the_same_receiver_is_known_in_all_its_forms() {
        use Likeness::{Other, Same, SameInAnotherForm};

        let http = "http://hooks.example.com/webhook/gitea";
        let https = "https://hooks.example.com:8443/webhook/gitea";
        for (ours, hook, expected) in [
            (http, http, Same),
            (http, "HTTP://Hooks.Example.COM:80/webhook/gitea", Same),
            (http, "http://hooks.example.com./webhook/gitea", Same),
            (http, "http://user:s3cr3t@hooks.example.com/webhook/gitea", Same),
            (http, "http://hooks.example.com/webhook/gitea#x", Same),
            (http, "http://hooks.example.com/webhook/gitea?", Same),
            (http, "http://hooks.example.com/a/../webhook/./gitea", Same),
            (http, "http://hooks.example.com/webhook/gitea/", SameInAnotherForm),
            (http, "http://hooks.example.com/webhook/gitea//", SameInAnotherForm),
            (http, "http://hooks.example.com/%77ebhook/gite%61", SameInAnotherForm),
            (http, "http://hooks.example.com/webhook%2Fgitea", Other),
            (http, "http://hooks.example.com/Webhook/gitea", Other),
            (http, "http://hooks.example.com//webhook/gitea", Other),
            (http, "http://hooks.example.com/webhook/gitea?to=other", Other),
            (http, "http://hooks.example.com:8000/webhook/gitea", Other),
            (http, "https://hooks.example.com/webhook/gitea", Other),
            (http, "http://other.example.com/webhook/gitea", Other),
            (http, "http://hooks.example.com/webhook", Other),
            (http, "hooks.example.com/webhook/gitea", Other),
            (http, "", Other),
            (https, "https://hooks.example.com:8443/webhook/gitea", Same),
            (https, "https://hooks.example.com/webhook/gitea", Other),
            ("http://[::1]:8000/webhook/gitea", "http://[0:0::1]:8000/webhook/gitea", Same),
            ("http://127.0.0.1:8000/x", "http://127.1:8000/x", Same),
            ("http://127.0.0.1:8000/x", "http://localhost:8000/x", Other),
            ("http://bücher.example/x", "http://xn--bcher-kva.example/x", Same),
        ] {
            assert_eq!(target(ours).likeness(hook), expected, "{ours} and {hook}");
        }
    }

    #[test]
    fn an_address_that_is_put_right_keeps_its_user() {
        let target = target("http://h:8000/webhook/gitea");
        for (hook, expected) in [
            ("http://h:8000/webhook/gitea/", "http://h:8000/webhook/gitea"),
            ("http://u:p@h:8000/webhook/gitea/", "http://u:p@h:8000/webhook/gitea"),
            ("http://u@h:8000/webhook/gitea/", "http://u@h:8000/webhook/gitea"),
            ("nothing", "http://h:8000/webhook/gitea"),
        ] {
            assert_eq!(target.with_user_of(hook), expected);
        }
    }

    #[test]
    fn what_may_keep_deliveries_away_is_told() {
        let (here, there) = ("http://127.0.0.1:3000", "https://gitea.example.com");
        for (text, gitea, expected) in [
            ("https://hooks.example.com/webhook/gitea", there, &[][..]),
            ("http://hooks.example.com/webhook/gitea", "http://gitea.example.com", &[]),
            ("http://hooks.example.com/webhook/gitea", there, &["not encrypted"]),
            ("http://127.0.0.1:8000/webhook/gitea", here, &["has loopback"]),
            ("http://localhost:8000/webhook/gitea", there, &["own machine", "has loopback"]),
            ("http://[::1]:8000/webhook/gitea", "http://gitea", &["own machine", "has loopback"]),
            ("http://0.0.0.0:8000/webhook/gitea", here, &["has loopback"]),
            ("https://10.1.2.3/webhook/gitea", there, &["has private"]),
            ("http://192.168.1.2/webhook/gitea", there, &["has private", "not encrypted"]),
            ("http://[fd00::2]/webhook/gitea", here, &["has private"]),
            ("http://coordinator:8000/webhook/gitea", "http://gitea:3000", &["probably a private"]),
            ("http://c.internal:8000/webhook/gitea", "http://gitea:3000", &["probably a private"]),
            ("https://hooks.example.com", there, &["another path than /webhook/gitea"]),
            ("https://hooks.example.com/webhook/gitea/", there, &["another path"]),
            ("https://8.8.8.8/coordinator/webhook/gitea", there, &["another path"]),
        ] {
            let warnings = target(text).warnings(gitea);
            assert_eq!(warnings.len(), expected.len(), "{text}: {warnings:?}");
            for (warning, part) in warnings.iter().zip(expected) {
                assert!(warning.contains(part), "{text}: {warning}");
            }
        }
    }
}
