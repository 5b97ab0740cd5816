//! The HTTP call of a run, signed as Standard Webhooks says.

mod connection;
mod signature;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, DATE, HeaderMap, RETRY_AFTER, USER_AGENT},
};
use service::{backoff::Backoff, causes::Causes, secret::Secret};
use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use tokio::time::timeout;
use url::Url;

/// How much of an answer is read, in bytes, so that a receiver sees that its answer was taken.
const ANSWER: usize = 64 * 1024;
/// Waits between attempts: the first, the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(300));
/// The longest wait that a receiver may ask for.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(3_600);

/// Whom to call.
#[derive(Clone, Debug)]
pub struct Call {
    /// `http://` or `https://`.
    pub url: String,
    /// Secret of the signature: what `whsec_` and base64 stand for, or the bytes themselves.
    pub secret: Secret,
    /// How long one answer may take.
    pub timeout: Duration,
}

/// Why a call was not accepted. Holds nothing of the answer's body.
#[derive(Debug, Error)]
pub enum CallError {
    /// Try again: no answer, 408, 425, 429 or 5xx.
    #[error("{problem}")]
    Again {
        /// What went wrong.
        problem: String,
        /// How long the receiver asks to wait.
        after: Option<Duration>,
    },
    /// Never: another answer, or a call that cannot be made.
    #[error("{0}")]
    Refused(String),
}

/// Calls once. `id` is the same for each attempt of a call, so that the receiver can tell a repeat.
///
/// # Errors
/// If it was not accepted with a 2xx. Redirects are not followed: the signature is for the address
/// that the rule names.
pub async fn send(
    call: &Call,
    id: &str,
    body: &[u8],
    traceparent: Option<&str>,
) -> Result<(), CallError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let refused = |problem: String| CallError::Refused(problem);
    let url =
        Url::parse(&call.url).map_err(|error| refused(format!("read the address: {error}")))?;
    let signature = signature::sign(&call.secret, id, seconds, body).map_err(refused)?;
    let mut request = Request::post(url.as_str())
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("coordinator/", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", id)
        .header("webhook-timestamp", seconds)
        .header("webhook-signature", signature);
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let request = request
        .body(Full::from(Bytes::copy_from_slice(body)))
        .map_err(|error| refused(format!("make the request: {error}")))?;
    let again = |problem: String| CallError::Again { problem, after: None };
    let exchange = async {
        let answered = connection::send(&url, request).await;
        let mut response = answered.map_err(|error| again(format!("call: {}", Causes(&*error))))?;
        let outcome = outcome(response.status(), response.headers());
        // What is accepted stays so, also if the answer breaks off.
        let _ = timeout(call.timeout / 2, drain(&mut response)).await;
        outcome
    };
    match timeout(call.timeout, exchange).await {
        Ok(outcome) => outcome,
        Err(_) => Err(again(format!("no answer within {:?}", call.timeout))),
    }
}

/// Calls until the call is accepted, with waits that grow, or as long as the receiver asks for. A
/// receiver may get it more than once, always with the same `id`.
///
/// # Errors
/// What the receiver will never accept.
pub async fn deliver(
    call: &Call,
    id: &str,
    body: &[u8],
    traceparent: Option<&str>,
) -> Result<(), String> {
    let mut backoff = Backoff::new(WAITS.0, WAITS.1);
    loop {
        match send(call, id, body, traceparent).await {
            Ok(()) => return Ok(()),
            Err(CallError::Refused(problem)) => return Err(problem),
            Err(CallError::Again { after, .. }) => {
                if let Some(after) = after {
                    tokio::time::sleep(after).await;
                }
                backoff.wait().await;
            }
        }
    }
}

fn outcome(status: StatusCode, headers: &HeaderMap) -> Result<(), CallError> {
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Err(again(status, headers))
        }
        status if status.is_server_error() => Err(again(status, headers)),
        status if status.is_redirection() => Err(CallError::Refused(format!(
            "a redirect ({}), which is not followed",
            status.as_u16()
        ))),
        status => Err(CallError::Refused(format!("status {}", status.as_u16()))),
    }
}

fn again(status: StatusCode, headers: &HeaderMap) -> CallError {
    let after = retry_after(headers).map(|after| after.min(RETRY_AFTER_MOST));
    CallError::Again { problem: format!("status {}", status.as_u16()), after }
}

/// How long nothing is to be asked (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| OffsetDateTime::parse(text, &Rfc2822).ok();
    // The date is of the clock that wrote it, which may not be ours.
    let now = headers.get(DATE).and_then(|now| date(now.to_str().ok()?));
    let wait = date(text)? - now.unwrap_or_else(OffsetDateTime::now_utc);
    Some(wait.try_into().unwrap_or(Duration::ZERO))
}

async fn drain(response: &mut Response<Incoming>) {
    let mut left = ANSWER;
    while let Some(Ok(frame)) = response.body_mut().frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        if length > left {
            return;
        }
        left -= length;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A receiver that gives each connection its answer, the last one again and again. Returns its
    /// address and the requests that it got.
    async fn receiver(answers: &[&'static str]) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        let got = Arc::new(Mutex::new(Vec::new()));
        let (log, answers) = (Arc::clone(&got), answers.to_vec());
        tokio::spawn(async move {
            let mut answers = answers.into_iter().peekable();
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = answers.next().unwrap_or_default();
                let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
                while !request.ends_with(b"}") {
                    let length = stream.read(&mut buffer).await.unwrap_or_default();
                    if length == 0 {
                        break;
                    }
                    request.extend_from_slice(&buffer[..length]);
                }
                log.lock().expect("no panic").push(String::from_utf8_lossy(&request).into_owned());
                if answers.peek().is_none() && answer.is_empty() {
                    // Silence.
                    std::future::pending::<()>().await;
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (url, got)
    }

    fn call(url: &str) -> Call {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        Call { url: url.into(), secret, timeout: Duration::from_millis(500) }
    }

    fn header<'a>(request: &'a str, name: &str) -> &'a str {
        let lines = request.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(found, _)| *found == name).map_or("", |(_, value)| value)
    }

    #[tokio::test]
    async fn a_call_is_signed_and_carries_its_trace() {
        let (url, got) = receiver(&["HTTP/1.1 204 No Content\r\n\r\n"]).await;
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        send(&call(&url), "1.7.fix.1", b"{\"a\":1}", Some(parent)).await.expect("accepted");
        let request = got.lock().expect("no panic")[0].clone();
        assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n{\"a\":1}"), "{request}");
        assert_eq!(header(&request, "webhook-id"), "1.7.fix.1");
        assert_eq!(header(&request, "traceparent"), parent);
        let seconds: u64 = header(&request, "webhook-timestamp").parse().expect("seconds");
        let secret = call(&url).secret;
        let expected = signature::sign(&secret, "1.7.fix.1", seconds, b"{\"a\":1}");
        assert_eq!(header(&request, "webhook-signature"), expected.expect("a signature"));
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "accepted"),
            // The body breaks off.
            ("HTTP/1.1 202 Accepted\r\nContent-Length: 20\r\n\r\nok", "accepted"),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
                "never: a redirect (302)",
            ),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", "never: status 400"),
            ("HTTP/1.1 410 Gone\r\n\r\n", "never: status 410"),
            ("HTTP/1.1 429 x\r\nRetry-After: 7\r\n\r\n", "again Some(7s): status 429"),
            ("HTTP/1.1 503 x\r\nRetry-After: 99999\r\n\r\n", "again Some(3600s): status 503"),
            ("HTTP/1.1 500 x\r\n\r\n", "again None: status 500"),
            ("HTTP/1.1 408 x\r\n\r\n", "again None: status 408"),
            ("nonsense\r\n\r\n", "again None: call:"),
            ("", "again None: no answer within"),
        ] {
            let (url, _) = receiver(&[answer]).await;
            let outcome = match send(&call(&url), "id", b"{}", None).await {
                Ok(()) => "accepted".to_owned(),
                Err(CallError::Again { problem, after }) => format!("again {after:?}: {problem}"),
                Err(CallError::Refused(problem)) => format!("never: {problem}"),
            };
            assert!(outcome.starts_with(expected), "{answer}: {outcome}");
        }
        let nobody = send(&call("http://127.0.0.1:1/"), "id", b"{}", None).await;
        assert!(matches!(nobody, Err(CallError::Again { .. })), "{nobody:?}");
        let id = send(&call("http://127.0.0.1:1/"), "a\nb", b"{}", None).await;
        assert!(matches!(id, Err(CallError::Refused(_))), "{id:?}");
    }

    #[tokio::test]
    async fn a_call_is_repeated_under_its_id_until_it_is_accepted() {
        let fail = "HTTP/1.1 503 x\r\n\r\n";
        let (url, got) = receiver(&[fail, "HTTP/1.1 200 OK\r\n\r\n"]).await;
        deliver(&call(&url), "same", b"{}", None).await.expect("accepted");
        let got = got.lock().expect("no panic").clone();
        assert_eq!(got.len(), 2);
        assert!(got.iter().all(|request| header(request, "webhook-id") == "same"));
        let (url, _) = receiver(&[fail, "HTTP/1.1 404 x\r\n\r\n"]).await;
        assert_eq!(deliver(&call(&url), "id", b"{}", None).await.expect_err("never"), "status 404");
    }

    #[test]
    fn a_date_is_a_wait_by_the_clock_that_wrote_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (RETRY_AFTER, "Fri, 27 Nov 2026 10:00:30 GMT"),
            (DATE, "Fri, 27 Nov 2026 10:00:00 GMT"),
        ] {
            headers.insert(name, value.parse().expect("a value"));
        }
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(30)));
        headers.insert(DATE, "Fri, 27 Nov 2026 11:00:00 GMT".parse().expect("a value"));
        assert_eq!(retry_after(&headers), Some(Duration::ZERO));
        headers.insert(RETRY_AFTER, "soon".parse().expect("a value"));
        assert_eq!(retry_after(&headers), None);
    }
}
