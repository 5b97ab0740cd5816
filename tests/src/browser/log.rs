//! What the browser logs: requests of pages, and complaints.

use serde_json::Value;

/// A request of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    /// The method.
    pub method: String,
    /// The whole address.
    pub url: String,
    /// `Document`, `Stylesheet`, `Script`, `Image`, `EventSource`, …
    pub kind: String,
}

impl Requested {
    /// Whether the request left the server at `origin`, such as `http://127.0.0.1:8080`.
    pub fn leaves(&self, origin: &str) -> bool {
        let own = self.url.strip_prefix(origin).is_some_and(|rest| rest.starts_with('/'));
        // What a page has in itself is asked of nobody.
        !own && !self.url.starts_with("data:") && !self.url.starts_with("about:")
    }
}

/// The requests in the performance log.
pub fn requests(entries: &[Value]) -> Vec<Requested> {
    let messages = entries.iter().filter_map(|entry| {
        let text = entry["message"].as_str()?;
        let message: Value = serde_json::from_str(text).ok()?;
        Some(message["message"].clone())
    });
    let sent = messages.filter(|message| message["method"] == "Network.requestWillBeSent");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    sent.map(|message| {
        let parameters = &message["params"];
        Requested {
            method: text(&parameters["request"]["method"]),
            url: text(&parameters["request"]["url"]),
            kind: text(&parameters["type"]),
        }
    })
    .collect()
}

/// The warnings and errors in the browser's log.
pub fn complaints(entries: &[Value]) -> Vec<String> {
    let bad =
        entries.iter().filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
    bad.map(|entry| {
        let (source, message) = (entry["source"].as_str(), entry["message"].as_str());
        format!("{}: {}", source.unwrap_or_default(), message.unwrap_or_default())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_another_origin_leaves() {
        for (url, leaves) in [
            ("http://127.0.0.1:8080/", false),
            ("http://127.0.0.1:8080/find?q=x", false),
            ("data:image/png;base64,AA", false),
            ("about:blank", false),
            ("http://127.0.0.1:80801/", true),
            ("http://127.0.0.1:8080.example.com/", true),
            ("https://127.0.0.1:8080/", true),
            ("//example.com/", true),
        ] {
            let request = Requested { method: "GET".into(), url: url.into(), kind: String::new() };
            assert_eq!(request.leaves("http://127.0.0.1:8080"), leaves, "{url}");
        }
    }

    #[test]
    fn warnings_and_errors_are_complaints() {
        let entry = |level: &str| serde_json::json!({"level": level, "source": "security", "message": "Refused"});
        let found = complaints(&[entry("INFO"), entry("WARNING"), entry("SEVERE"), entry("DEBUG")]);
        assert_eq!(found, ["security: Refused", "security: Refused"]);
    }
}
