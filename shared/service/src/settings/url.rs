//! Settings that are URLs.

use ::url::{Host, Url};

/// Reads an http:// or https:// URL to which paths are added, without the slash at its end.
pub fn http_url(text: &str) -> Result<String, String> {
    check(text).map(|()| text.trim_end_matches('/').to_owned())
}

/// Reads an http:// or https:// URL that is asked for as it is written: with a slash at its end it is
/// another one.
pub fn http_address(text: &str) -> Result<String, String> {
    check(text).map(|()| text.to_owned())
}

/// Checks an http:// or https:// URL. It is shown to others, so a user or a password in it is refused.
fn check(text: &str) -> Result<(), String> {
    let (scheme, rest) =
        text.split_once("://").ok_or("has no scheme; it begins with http:// or https://")?;
    let is_http = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    // The parser is lenient with what browsers correct.
    let is_url = rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
        && !rest.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\');
    if !is_http || !is_url {
        return Err("is not an http:// or https:// URL".into());
    }
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password, which others would see; take it out".into());
    }
    if url.port() == Some(0) {
        return Err("has port 0".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query or a fragment (? or #); take it out".into());
    }
    Ok(())
}

/// Paths that are added to the endpoint.
const OTLP_PATHS: [&str; 3] = ["/v1/traces", "/v1/metrics", "/v1/logs"];

/// Reads the endpoint of an OTLP receiver, without the path of a signal.
pub fn otlp_endpoint(text: &str) -> Result<String, String> {
    let url = http_url(text)?;
    if !url[..5].eq_ignore_ascii_case("http:") {
        return Err("is an https:// URL, and this program exports over http:// only; \
                    name a collector that forwards"
            .into());
    }
    let base = OTLP_PATHS.iter().find_map(|path| url.strip_suffix(path)).unwrap_or(&url);
    Ok(base.trim_end_matches('/').to_owned())
}

/// What stands for the id in [`trace_url`].
pub const TRACE_ID: &str = "{trace_id}";

/// Reads the URL of a page of a trace, with [`TRACE_ID`] in its path, query or fragment.
pub fn trace_url(text: &str) -> Result<String, String> {
    let (base, rest) = text.split_at(text.find(['?', '#']).unwrap_or(text.len()));
    let zeros = |text: &str| text.replace(TRACE_ID, &"0".repeat(32));
    http_url(&zeros(base))?;
    let host = base.split('/').nth(2).unwrap_or_default();
    if !text.contains(TRACE_ID) || host.contains(TRACE_ID) {
        return Err(format!("has no {TRACE_ID} in its path, its query or its fragment"));
    }
    if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("has a space or a control character".into());
    }
    Ok(text.to_owned())
}

/// Whether a URL leads to this machine. A proxy does not lead there.
pub fn is_loopback(url: &str) -> bool {
    let url = Url::parse(url).ok();
    url.as_ref().and_then(Url::host).is_some_and(|host| match host {
        Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
        // What listens on all addresses is often named by that.
        Host::Ipv4(address) => address.is_loopback() || address.is_unspecified(),
        Host::Ipv6(address) => address.is_loopback() || address.is_unspecified(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_other_texts() {
        for (text, expected) in [
            ("http://h", Ok("http://h")),
            ("https://[::1]:3000/x/", Ok("https://[::1]:3000/x")),
            ("HTTPS://h//", Ok("HTTPS://h")),
            ("http://", Err("is not an http:// or https:// URL")),
            ("http:///h", Err("is not an http:// or https:// URL")),
            ("http:// h", Err("is not an http:// or https:// URL")),
            ("http://h\\x", Err("is not an http:// or https:// URL")),
            ("ftp://h", Err("is not an http:// or https:// URL")),
            ("h:3000", Err("has no scheme; it begins with http:// or https://")),
            ("http://h:70000", Err("is not a URL (invalid port number)")),
            ("http://h:0", Err("has port 0")),
            ("http://[::1", Err("is not a URL (invalid IPv6 address)")),
            (
                "http://u:s3cr3t@h",
                Err("holds a user or a password, which others would see; take it out"),
            ),
            (
                "http://t0ken@h",
                Err("holds a user or a password, which others would see; take it out"),
            ),
            ("http://h?token=s3cr3t", Err("has a query or a fragment (? or #); take it out")),
            ("http://h/#x", Err("has a query or a fragment (? or #); take it out")),
        ] {
            let read = http_url(text);
            assert_eq!(read.as_deref().map_err(String::as_str), expected, "{text}");
            let as_written = expected.map(|_| text);
            let read = http_address(text);
            assert_eq!(read.as_deref().map_err(String::as_str), as_written, "{text}");
        }
    }

    #[test]
    fn an_endpoint_is_read_with_and_without_the_path_of_a_signal() {
        for (text, expected) in [
            ("http://h:4318", Some("http://h:4318")),
            ("http://h:4318/", Some("http://h:4318")),
            ("http://h:4318/v1/traces", Some("http://h:4318")),
            ("http://h:4318/v1/metrics/", Some("http://h:4318")),
            ("http://h/otlp/v1/traces", Some("http://h/otlp")),
            ("http://h/otlp", Some("http://h/otlp")),
            ("https://h", None),
            ("h:4318", None),
            ("localhost:4318/v1/traces", None),
            ("grpc://h:4317", None),
            ("http://u:p@h", None),
        ] {
            assert_eq!(otlp_endpoint(text).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_page_of_a_trace_has_a_place_for_its_id() {
        for (text, expected) in [
            ("http://h:16686/trace/{trace_id}", true),
            ("https://h/explore?trace={trace_id}&x=1", true),
            ("https://h/#/t/{trace_id}", true),
            ("http://h:16686/trace/", false),
            ("http://h/{trace-id}", false),
            ("http://{trace_id}.h/", false),
            ("javascript://h/{trace_id}", false),
            ("h/{trace_id}", false),
            ("http://u:p@h/{trace_id}", false),
            ("http://h/?x={trace_id} y", false),
        ] {
            assert_eq!(trace_url(text).is_ok(), expected, "{text}");
        }
    }

    #[test]
    fn loopback_is_known_in_all_its_forms() {
        for (url, expected) in [
            ("http://localhost:4318", true),
            ("http://LOCALHOST", true),
            ("http://a.localhost", true),
            ("http://127.1.2.3/x", true),
            ("http://[::1]:4318", true),
            ("http://0.0.0.0:4318", true),
            ("http://localhost.example.com", false),
            ("http://10.0.0.1", false),
            ("http://jaeger:4318", false),
            ("localhost:4318", false),
        ] {
            assert_eq!(is_loopback(url), expected, "{url}");
        }
    }
}
