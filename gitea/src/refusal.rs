//! What an answer that is none says: Gitea's message, the scopes that lack, how long to wait.

use std::time::Duration;

use hyper::{
    StatusCode,
    header::{DATE, HeaderMap, RETRY_AFTER},
};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::{error::ApiError, options::Token, times};

/// Of a refusal's body this much is read.
pub(crate) const BODY_LIMIT: usize = 16 * 1024;

/// Characters of a message that are kept.
const MESSAGE_LIMIT: usize = 200;

/// How Gitea's API writes an error. Pages of proxies have another form.
#[derive(Deserialize)]
struct Written {
    message: String,
    url: String,
}

/// The error that a status and the beginning of a body stand for.
pub(crate) fn read(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    token: Option<&Token>,
) -> ApiError {
    let written = serde_json::from_slice::<Written>(body).ok().filter(|it| !it.url.is_empty());
    let is_giteas = written.is_some();
    let text = written.map(|written| written.message).unwrap_or_default();
    let message = presentable(&text, token);
    match status {
        StatusCode::UNAUTHORIZED => ApiError::Unauthorized { message },
        StatusCode::FORBIDDEN => {
            let (required, present) = scopes(&text);
            ApiError::Forbidden { message, required, present }
        }
        StatusCode::NOT_FOUND => ApiError::NotFound { is_giteas },
        StatusCode::TOO_MANY_REQUESTS => {
            ApiError::TooManyRequests { retry_after: retry_after(headers) }
        }
        // So Gitea answers for the timeline of an issue that is not there.
        StatusCode::INTERNAL_SERVER_ERROR if text.starts_with("issue does not exist") => {
            ApiError::NotFound { is_giteas }
        }
        status if status.is_server_error() => ApiError::Server { status: status.as_u16(), message },
        status => ApiError::Unexpected { status: status.as_u16(), message },
    }
}

/// How long nothing is to be asked (RFC 9110, 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // The date is of the clock that wrote it, which may not be ours.
    let now = date(headers).unwrap_or_else(OffsetDateTime::now_utc);
    Some((times::of_header(text)? - now).try_into().unwrap_or(Duration::ZERO))
}

/// The header `Date`.
pub(crate) fn date(headers: &HeaderMap) -> Option<OffsetDateTime> {
    times::of_header(headers.get(DATE)?.to_str().ok()?)
}

/// A message for a line of the log: short, without control characters, without the token, which
/// older versions name in the message of a 401.
fn presentable(text: &str, token: Option<&Token>) -> String {
    let hidden = match token.map(Token::expose) {
        Some(token) if !token.is_empty() => text.replace(token, "(hidden)"),
        _ => text.to_owned(),
    };
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    hidden.chars().map(plain).take(MESSAGE_LIMIT).collect()
}

/// The scopes of which the token needs one, and those it has, as the message of a 403 names them:
/// `required=[a,b], token scope=c,d`. Older versions name only the first: `scope(s): [a b]`.
fn scopes(message: &str) -> (Vec<String>, Vec<String>) {
    let names = |text: &str| {
        let names = text.split([',', ' ']).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    if !message.contains("required scope") {
        return (Vec::new(), Vec::new());
    }
    let (_, rest) = message.split_once('[').unwrap_or_default();
    let (required, rest) = rest.split_once(']').unwrap_or_default();
    let (_, present) = rest.split_once("token scope=").unwrap_or_default();
    (names(required), names(present))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use time::macros::datetime;

    use super::*;

    const BAD_TOKEN: &[u8] = include_bytes!("../fixtures/search-bad-token.body");
    const NO_SCOPE: &[u8] = include_bytes!("../fixtures/search-no-scope.body");
    const NO_SCOPE_FOR_HOOKS: &[u8] =
        include_bytes!("../fixtures/hooks-of-repo-issue-scope-only.body");
    const NO_PERMISSION: &[u8] = include_bytes!("../fixtures/hook-create-no-permission.body");
    const BAD_URL: &[u8] = include_bytes!("../fixtures/hook-create-bad-url.body");
    const BAD_SINCE: &[u8] = include_bytes!("../fixtures/search-since-malformed.body");
    const DELETED: &[u8] = include_bytes!("../fixtures/issue-deleted.body");
    const NO_TIMELINE: &[u8] = include_bytes!("../fixtures/issue-timeline-missing.body");

    fn refusal(status: u16, body: &[u8]) -> ApiError {
        read(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body, None)
    }

    #[test]
    fn each_status_has_its_error() {
        let html = b"<html><body>404</body></html>";
        for (status, body, expected) in [
            (401, BAD_TOKEN, "Unauthorized { message: \"invalid username, password or token\" }"),
            (401, html, "Unauthorized { message: \"\" }"),
            (404, DELETED, "NotFound { is_giteas: true }"),
            (404, html, "NotFound { is_giteas: false }"),
            (404, b"", "NotFound { is_giteas: false }"),
            (404, b"{\"message\":\"no route\"}", "NotFound { is_giteas: false }"),
            (404, b"{\"message\":\"x\",\"url\":\"\"}", "NotFound { is_giteas: false }"),
            (404, b"[]", "NotFound { is_giteas: false }"),
            (500, NO_TIMELINE, "NotFound { is_giteas: true }"),
            (
                502,
                NO_TIMELINE,
                "Server { status: 502, message: \"issue does not exist [id: 0, repo_id: 1, index: 4]\" }",
            ),
            (500, b"issue does not exist", "Server { status: 500, message: \"\" }"),
            (503, html, "Server { status: 503, message: \"\" }"),
            (422, BAD_URL, "Unexpected { status: 422, message: \"Invalid url\" }"),
            (302, b"", "Unexpected { status: 302, message: \"\" }"),
            (304, b"", "Unexpected { status: 304, message: \"\" }"),
            (429, b"", "TooManyRequests { retry_after: None }"),
        ] {
            assert_eq!(format!("{:?}", refusal(status, body)), expected);
        }
        let ApiError::Unexpected { message, .. } = refusal(422, BAD_SINCE) else { panic!() };
        assert!(message.starts_with("parsing time \"yesterday\""), "{message}");
    }

    #[test]
    fn scopes_are_named() {
        let old = br#"{"message":"token does not have at least one of required scope(s): [read:issue write:issue]","url":"http://h/api/swagger"}"#;
        for (body, required, present) in [
            (NO_SCOPE, &["read:issue"][..], &["read:user"][..]),
            (NO_SCOPE_FOR_HOOKS, &["read:repository"], &["read:issue"]),
            (old, &["read:issue", "write:issue"], &[]),
            (NO_PERMISSION, &[], &[]),
        ] {
            let error = refusal(403, body);
            let ApiError::Forbidden { required: found, present: has, .. } = &error else {
                panic!("{error:?}")
            };
            assert_eq!(
                (&found[..], &has[..]),
                (
                    &required.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()[..],
                    &present.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()[..]
                )
            );
        }
        let several = "token does not have at least one of required scope(s), required=[read:organization], token scope=read:issue,read:repository,read:user";
        assert_eq!(scopes(several).1, ["read:issue", "read:repository", "read:user"]);
    }

    #[test]
    fn messages_are_short_and_hold_no_token() {
        let token = Token::new("secret-token");
        for (text, expected) in [
            (
                "access token does not exist [sha: secret-token]",
                "access token does not exist [sha: (hidden)]",
            ),
            ("a\u{1b}[31m\r\nb", "a [31m  b"),
        ] {
            assert_eq!(presentable(text, Some(&token)), expected);
        }
        assert_eq!(presentable(&"é".repeat(500), None).chars().count(), MESSAGE_LIMIT);
        assert_eq!(presentable("x", Some(&Token::new(""))), "x");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = "Thu, 26 Nov 2026 12:55:31 GMT";
        for (text, expected) in [
            ("120", Some(Duration::from_secs(120))),
            (" 0 ", Some(Duration::ZERO)),
            ("Thu, 26 Nov 2026 12:56:31 GMT", Some(Duration::from_secs(60))),
            ("Thu, 26 Nov 2026 12:00:00 GMT", Some(Duration::ZERO)),
            ("soon", None),
            ("-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(DATE, HeaderValue::from_static(date));
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            assert_eq!(retry_after(&headers), expected, "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(DATE, HeaderValue::from_static(date));
        assert_eq!(super::date(&headers), Some(datetime!(2026-11-26 12:55:31 UTC)));
        assert_eq!(retry_after(&headers), None);
    }
}
