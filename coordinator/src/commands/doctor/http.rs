//! Requests to ingest and to the operator's listener.

use std::time::Duration;

use reqwest::{Response, redirect::Policy};
use service::settings::is_loopback;

use crate::delivery::Delivery;

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How much of an answer is read, in bytes. `/metrics` has some hundred kB.
const MOST: usize = 4 << 20;

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Asks for `url`.
///
/// # Errors
/// Why there is no answer, in words.
pub(super) async fn get(url: &str) -> Result<Answer, String> {
    let request = client(url)?.get(url);
    read(request.send().await.map_err(|error| in_words(&error))?).await
}

/// Sends a delivery.
///
/// # Errors
/// Why there is no answer, in words.
pub(super) async fn post(url: &str, delivery: &Delivery) -> Result<Answer, String> {
    let mut request = client(url)?.post(url).body(delivery.body.clone());
    for (name, value) in &delivery.headers {
        request = request.header(*name, value);
    }
    read(request.send().await.map_err(|error| in_words(&error))?).await
}

fn client(url: &str) -> Result<reqwest::Client, String> {
    if !url.starts_with("http://") {
        return Err("this program speaks http:// only".into());
    }
    let client = reqwest::Client::builder().timeout(DEADLINE).redirect(Policy::none());
    // A proxy looks for loopback on its own machine.
    let client = if is_loopback(url) { client.no_proxy() } else { client };
    client.build().map_err(|error| in_words(&error))
}

async fn read(mut response: Response) -> Result<Answer, String> {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| in_words(&error))? {
        if body.len() + chunk.len() > MOST {
            return Err(format!("the answer is larger than {MOST} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

/// The innermost cause: the outer ones name the URL again.
fn in_words(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", DEADLINE.as_secs());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
