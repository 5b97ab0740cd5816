//! Where hooks post to, from Gitea's side as far as it can be known from here.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use reqwest::Url;
use serde_json::Value;
use service::settings::{is_loopback, text};
use tokio::{net::lookup_host, time::timeout};

use super::{
    DoctorArgs,
    hooks::{Found, same_address, shown},
    http,
    report::Check,
};

/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(3);
/// Targets that are looked at, so that the look has an end.
const MOST: usize = 4;

/// Where an address is, as Gitea's block list sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    External,
    /// Neither of the others: link-local for one. It has to be named.
    Other,
    Private,
    Loopback,
}

impl Place {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            ip if ip.is_loopback() || ip.is_unspecified() => Self::Loopback,
            IpAddr::V4(ip) if ip.is_private() => Self::Private,
            IpAddr::V6(ip) if ip.is_unique_local() => Self::Private,
            IpAddr::V4(ip) if ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() => {
                Self::Other
            }
            IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.is_multicast() => Self::Other,
            _ => Self::External,
        }
    }

    /// What `ALLOWED_HOST_LIST` has to hold. Without it Gitea takes external targets alone.
    fn allowed_by(self, host: &str) -> Option<String> {
        match self {
            Self::External => None,
            Self::Other => Some(host.to_owned()),
            Self::Private => Some("private".into()),
            Self::Loopback => Some("loopback".into()),
        }
    }
}

/// What hooks post to.
pub(super) struct Targets<'a> {
    pub(super) args: &'a DoctorArgs,
    pub(super) gitea_url: &'a str,
    pub(super) hooks: &'a [Found],
    /// Where a delivery of Gitea's own has just arrived.
    pub(super) arrived: Option<String>,
}

impl Targets<'_> {
    /// Looks at each target of a hook of ours, and at `--url`.
    pub(super) async fn check(&self, checks: &mut Vec<Check>) {
        let mut urls: Vec<&str> = Vec::new();
        let of_hooks = self.hooks.iter().map(|found| found.hook.url.as_str());
        for url in text(&self.args.url).into_iter().chain(of_hooks) {
            if !urls.iter().any(|known| same_address(known, url)) {
                urls.push(url);
            }
        }
        for url in urls.iter().take(MOST) {
            if self.arrived.as_deref().is_some_and(|arrived| same_address(arrived, url)) {
                checks.push(Check::ok(name(url), "a delivery of Gitea's own has arrived there"));
                continue;
            }
            let Ok(parsed) = url.parse::<Url>() else {
                checks.push(Check::wrong("target", "it is no URL", "edit the hook in Gitea"));
                continue;
            };
            let (place, answers) = tokio::join!(place(&parsed), answers(&parsed));
            checks.push(told(&parsed, place, answers, is_loopback(self.gitea_url)));
        }
        if urls.is_empty() {
            let why = "none is known; name it with --url (WEBHOOK_URL)";
            checks.push(Check::skipped("target", why));
        }
    }
}

fn name(url: &str) -> String {
    format!("target {}", shown(url))
}

/// Where a URL leads. None if its name does not resolve here.
async fn place(url: &Url) -> Option<Place> {
    let host = url.host_str()?.trim_matches(['[', ']']);
    if let Ok(address) = host.parse::<Ipv6Addr>() {
        return Some(Place::of(address.into()));
    }
    let port = url.port_or_known_default().unwrap_or(80);
    let found = timeout(RESOLVE, lookup_host((host, port))).await.ok()?.ok()?;
    found.map(|address| Place::of(address.ip())).max()
}

/// Whether ingest answers there from here; None if that cannot be asked.
async fn answers(url: &Url) -> Option<bool> {
    if url.scheme() != "http" {
        return None;
    }
    let path = url.path().trim_end_matches('/').strip_suffix("/webhook/gitea")?;
    let mut health = url.clone();
    health.set_path(&format!("{path}/health"));
    health.set_query(None);
    let answer = http::get(health.as_str()).await;
    let health = answer.ok().and_then(|it| serde_json::from_str::<Value>(&it.body).ok());
    Some(health.is_some_and(|health| health.get("journal").is_some()))
}

fn told(url: &Url, place: Option<Place>, answers: Option<bool>, gitea_is_here: bool) -> Check {
    let (name, host) = (name(url.as_str()), url.host_str().unwrap_or_default());
    let Some(place) = place else {
        let found = format!("{host} does not resolve here; whether it does for Gitea is not known");
        return Check::warning(name, found, "check the name on Gitea's machine");
    };
    if place == Place::Loopback && !gitea_is_here {
        let found = "it is Gitea's own machine, from Gitea's side, and Gitea is on another";
        return Check::wrong(name, found, "give the hook an address of this machine");
    }
    if answers == Some(false) {
        let remedy = "see whether ingest listens there (HOST, PORT), and what is between";
        return Check::warning(name, "no ingest answers there from here", remedy);
    }
    if let Some(word) = place.allowed_by(host) {
        let found = format!(
            "Gitea refuses such targets unless its app.ini allows them; that cannot be seen from here ({})",
            if answers == Some(true) { "ingest answers there" } else { "not asked from here" }
        );
        let remedy = format!(
            "have {word} in ALLOWED_HOST_LIST ([webhook], or [security] in newer versions); the hook's recent deliveries in Gitea show whether it is"
        );
        return Check::warning(name, found, remedy);
    }
    match (url.scheme(), answers) {
        ("https", _) => Check::ok(name, "it resolves, and is https"),
        _ => Check::warning(
            name,
            "deliveries go over the internet in plain text",
            "put a proxy with TLS before ingest, and give hooks its https:// address",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::Outcome, *};

    #[test]
    fn places_are_those_of_giteas_block_list() {
        for (address, expected) in [
            ("127.0.0.1", Place::Loopback),
            ("0.0.0.0", Place::Loopback),
            ("::1", Place::Loopback),
            ("::ffff:127.0.0.1", Place::Loopback),
            ("10.1.2.3", Place::Private),
            ("192.168.1.1", Place::Private),
            ("fd00::1", Place::Private),
            ("169.254.1.1", Place::Other),
            ("fe80::1", Place::Other),
            ("1.1.1.1", Place::External),
            ("2606:4700::1111", Place::External),
        ] {
            assert_eq!(Place::of(address.parse().expect("an address")), expected, "{address}");
        }
    }

    #[test]
    fn a_target_is_judged_from_giteas_side() {
        let (yes, no) = (Some(true), Some(false));
        for (url, place, answers, gitea_is_here, expected, part) in [
            ("https://h/webhook/gitea", Some(Place::External), None, false, Outcome::Ok, "https"),
            (
                "http://h/webhook/gitea",
                Some(Place::External),
                yes,
                false,
                Outcome::Warning,
                "plain",
            ),
            (
                "http://h/webhook/gitea",
                Some(Place::Private),
                yes,
                false,
                Outcome::Warning,
                "refuses",
            ),
            (
                "http://h/webhook/gitea",
                Some(Place::Private),
                no,
                false,
                Outcome::Warning,
                "no ingest",
            ),
            (
                "http://h/webhook/gitea",
                Some(Place::Loopback),
                yes,
                true,
                Outcome::Warning,
                "refuses",
            ),
            (
                "http://h/webhook/gitea",
                Some(Place::Loopback),
                yes,
                false,
                Outcome::Wrong,
                "own machine",
            ),
            ("http://h/webhook/gitea", None, None, false, Outcome::Warning, "does not resolve"),
        ] {
            let url = url.parse().expect("a URL");
            let check = told(&url, place, answers, gitea_is_here);
            assert_eq!(check.outcome, expected, "{}", check.found);
            assert!(check.found.contains(part), "{}", check.found);
        }
    }
}
