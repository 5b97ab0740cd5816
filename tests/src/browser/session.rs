//! A session of W3C WebDriver: a dozen commands in JSON over HTTP.

use std::{fmt, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};

/// Chromium starts slowly while two cores run many tests.
const LONGEST: Duration = Duration::from_secs(120);

/// A command that was refused, or that failed.
#[derive(Debug)]
pub struct Refused {
    /// The W3C's code, such as `no such element`.
    code: String,
    message: String,
}

impl Refused {
    /// Whether the page has no such element.
    pub fn is_missing_element(&self) -> bool {
        self.code == "no such element"
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refused {}

/// An open session.
pub struct Session {
    http: reqwest::Client,
    base: String,
    browser: u32,
}

impl Session {
    /// Opens a session: the chromedriver at this port starts a browser with these `goog:chromeOptions`.
    ///
    /// # Panics
    /// If the browser does not start.
    pub async fn open(port: u16, options: Value) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(LONGEST).build();
        let http = http.expect("an HTTP client");
        let base = format!("http://127.0.0.1:{port}/session");
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        });
        let body = json!({"capabilities": {"alwaysMatch": wanted}});
        let opened = command(&http, Method::POST, &base, Some(body)).await;
        let opened = opened.unwrap_or_else(|error| panic!("Chromium does not start: {error}"));
        let id = opened["sessionId"].as_str().expect("a session id");
        let browser = opened["capabilities"]["goog:processID"].as_u64().expect("its process id");
        Self { base: format!("{base}/{id}"), http, browser: browser as u32 }
    }

    /// Process id of the browser.
    pub fn browser(&self) -> u32 {
        self.browser
    }

    /// The value that the command at this path of the session returns.
    ///
    /// # Errors
    /// What chromedriver refuses, or could not do.
    pub async fn get(&self, path: &str) -> Result<Value, Refused> {
        command(&self.http, Method::GET, &format!("{}/{path}", self.base), None).await
    }

    /// Like [`Session::get`], for a command with parameters.
    ///
    /// # Errors
    /// What chromedriver refuses, or could not do.
    pub async fn post(&self, path: &str, parameters: Value) -> Result<Value, Refused> {
        let url = format!("{}/{path}", self.base);
        command(&self.http, Method::POST, &url, Some(parameters)).await
    }
}

async fn command(
    http: &reqwest::Client,
    method: Method,
    url: &str,
    parameters: Option<Value>,
) -> Result<Value, Refused> {
    let mut request = http.request(method, url);
    if let Some(parameters) = parameters {
        request = request.json(&parameters);
    }
    let response = request.send().await.expect("an answer of chromedriver");
    let good = response.status().is_success();
    let mut answer: Value = response.json().await.expect("JSON of chromedriver");
    let value = answer["value"].take();
    if good {
        return Ok(value);
    }
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    Err(Refused { code: text("error"), message: text("message") })
}
