//! A real Chromium without a window, driven by its chromedriver over WebDriver. Each test has its own.
//!
//! It resolves no host name but those of a test, so a page that asks another host fails here as well
//! as in [`Browser::requests`].

mod accessibility;
mod driver;
mod keys;
mod log;
mod session;

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};

pub use self::{
    accessibility::{Finding, fetch_axe},
    keys::Key,
    log::Requested,
};
use self::{driver::Driver, session::Session};
use crate::wait;

/// How a page is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    /// 1200 pixels wide.
    Desktop,
    /// 360 pixels wide, with touch.
    Phone,
}

impl Screen {
    /// Width and height in CSS pixels.
    pub fn size(self) -> (u32, u32) {
        match self {
            Self::Desktop => (1200, 800),
            Self::Phone => (360, 740),
        }
    }
}

/// The colours that somebody prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

/// What differs from an ordinary browser.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Whether pages may run JavaScript.
    pub javascript: bool,
    /// Host names that lead to this machine.
    pub hosts: Vec<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { javascript: true, hosts: Vec::new() }
    }
}

/// A browser with one tab, and a profile of its own. Ended when dropped.
pub struct Browser {
    session: Session,
    // Ends the browser, so it goes before its profile.
    _driver: Driver,
    _home: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser. None where there is no Chromium or no chromedriver, which is said on standard error.
    ///
    /// # Panics
    /// If there is none although `BROWSER_TESTS` is `required`, or if it does not start.
    pub async fn start(setup: &Setup) -> Option<Self> {
        let (chromium, chromedriver) = match programs() {
            Ok(programs) => programs,
            Err(missing) => {
                assert!(!required(), "BROWSER_TESTS=required, but there is {missing} on the PATH");
                eprintln!("skipped: there is {missing} on the PATH");
                return None;
            }
        };
        let home = crate::temp_dir();
        let mut driver = Driver::start(&chromedriver, home.path()).await;
        let options = json!({
            "binary": chromium,
            "args": arguments(setup, &home.path().join("profile")),
            "prefs": preferences(setup),
        });
        let session = Session::open(driver.port(), options).await;
        driver.ends_too(session.browser());
        let browser = Self { session, _driver: driver, _home: home };
        browser.show_on(Screen::Desktop).await;
        browser.prefer(Scheme::Light).await;
        // Debian's Chromium begins with a page of its own.
        browser.open("about:blank").await;
        browser.requests().await;
        browser.complaints().await;
        Some(browser)
    }

    /// Opens an address and waits until the page is loaded.
    pub async fn open(&self, url: &str) {
        self.session.post("url", json!({ "url": url })).await.expect(url);
    }

    /// Opens an address. The text of the error is returned if there is no page there.
    pub async fn try_open(&self, url: &str) -> Result<(), String> {
        let opened = self.session.post("url", json!({ "url": url })).await;
        opened.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Loads the page again.
    pub async fn reload(&self) {
        self.session.post("refresh", json!({})).await.expect("reload");
    }

    /// The address of the page.
    pub async fn url(&self) -> String {
        let url = self.session.get("url").await.expect("the address");
        url.as_str().expect("a text").to_owned()
    }

    /// The page's title.
    pub async fn title(&self) -> String {
        let title = self.session.get("title").await.expect("the title");
        title.as_str().expect("a text").to_owned()
    }

    /// The value that a script in the page returns. The page's Content-Security-Policy does not hold
    /// for it, and neither does a setting that pages run none.
    pub async fn run(&self, script: &str, arguments: Value) -> Value {
        let body = json!({ "script": script, "args": arguments });
        self.session.post("execute/sync", body).await.expect("a script")
    }

    /// What a script hands to the last of its arguments, a function.
    async fn run_async(&self, script: &str, arguments: Value) -> Value {
        let body = json!({ "script": script, "args": arguments });
        self.session.post("execute/async", body).await.expect("a script")
    }

    /// All text that can be seen on the page.
    pub async fn text(&self) -> String {
        self.text_of("body").await.expect("a page")
    }

    /// The visible text of the first element that a CSS selector finds. None if it finds none.
    pub async fn text_of(&self, selector: &str) -> Option<String> {
        let script = "return document.querySelector(arguments[0])?.innerText ?? null";
        self.run(script, json!([selector])).await.as_str().map(str::to_owned)
    }

    /// How many elements a CSS selector finds.
    pub async fn count(&self, selector: &str) -> u64 {
        let count =
            self.run("return document.querySelectorAll(arguments[0]).length", json!([selector]));
        count.await.as_u64().expect("a number")
    }

    /// Waits until the page's text contains `text`.
    ///
    /// # Panics
    /// At the deadline, with what the page showed last.
    pub async fn shows(&self, text: &str) {
        let mut last = String::new();
        let started = std::time::Instant::now();
        while !last.contains(text) {
            assert!(started.elapsed() < wait::DEADLINE, "the page does not show {text:?}:\n{last}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            // Between two pages there may be none.
            let script = "return document.body?.innerText ?? ''";
            last = self.run(script, json!([])).await.as_str().unwrap_or_default().to_owned();
        }
    }

    /// Clicks an element, and waits for the page that it leads to, if it leads to one.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        let clicked = self.session.post(&format!("element/{element}/click"), json!({})).await;
        clicked.expect(selector);
    }

    /// Puts a text into a field, in place of what it held.
    pub async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.session.post(&format!("element/{element}/clear"), json!({})).await.expect(selector);
        let body = json!({ "text": text });
        self.session.post(&format!("element/{element}/value"), body).await.expect(selector);
    }

    /// Presses keys one after the other, wherever the focus is.
    pub async fn press(&self, keys: impl IntoIterator<Item = Key>) {
        let actions = keys::actions(keys);
        self.session.post("actions", actions).await.expect("press keys");
    }

    /// The element that a CSS selector finds, once it does: the page may still be on its way.
    async fn element(&self, selector: &str) -> String {
        let body = json!({ "using": "css selector", "value": selector });
        let what = format!("an element {selector}");
        let found = wait::until(&what, || async {
            match self.session.post("element", body.clone()).await {
                Err(refused) if refused.is_missing_element() => None,
                found => Some(found.expect(selector)),
            }
        })
        .await;
        let id = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str);
        id.expect("an id").to_owned()
    }

    /// Shows pages on such a screen from now on.
    pub async fn show_on(&self, screen: Screen) {
        let (width, height) = screen.size();
        let phone = screen == Screen::Phone;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
        self.devtools("Emulation.setTouchEmulationEnabled", json!({ "enabled": phone })).await;
    }

    /// Prefers such colours from now on.
    pub async fn prefer(&self, scheme: Scheme) {
        let value = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        let features = json!([
            {"name": "prefers-color-scheme", "value": value},
            // A page that scrolls smoothly is not yet where it is clicked.
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Status of the answer that the page came with.
    pub async fn status(&self) -> u64 {
        let script = "return performance.getEntriesByType('navigation')[0].responseStatus";
        self.run(script, json!([])).await.as_u64().expect("a number")
    }

    /// The address of what is shown in the page's first frame. Of a refused page it is one of the browser's own.
    pub async fn framed(&self) -> String {
        self.session.post("frame", json!({ "id": 0 })).await.expect("a frame");
        let address = self.run("return location.href", json!([])).await;
        self.session.post("frame", json!({ "id": null })).await.expect("back to the page");
        address.as_str().expect("a text").to_owned()
    }

    /// By how many pixels the page is wider than the screen.
    pub async fn overflow(&self) -> u64 {
        let script =
            "const page = document.scrollingElement; return page.scrollWidth - page.clientWidth";
        self.run(script, json!([])).await.as_u64().expect("a number")
    }

    /// The page as a PNG of few colors, from its top to `height` pixels at most.
    pub async fn screenshot(&self, height: u32) -> Vec<u8> {
        let script = "return document.documentElement.getBoundingClientRect().height";
        let whole = self.run(script, json!([])).await.as_f64().expect("a number").ceil() as u32;
        let (width, _) = Screen::Desktop.size();
        let clip = json!({"x": 0, "y": 0, "width": width, "height": whole.min(height), "scale": 1});
        let parameters = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let taken = self.devtools("Page.captureScreenshot", parameters).await;
        const COLORS: u32 = 64;
        let arguments = json!([taken["data"], COLORS]);
        let smaller = self.run_async(include_str!("browser/picture.js"), arguments).await;
        let text = smaller.as_str().unwrap_or_else(|| panic!("a picture: {smaller}"));
        data_encoding::BASE64.decode(text.as_bytes()).expect("base64")
    }

    /// What pages requested since this was asked last.
    pub async fn requests(&self) -> Vec<Requested> {
        log::requests(&self.log("performance").await)
    }

    /// What the browser complained about since this was asked last: errors of scripts, violations of
    /// a Content-Security-Policy, answers that are errors.
    pub async fn complaints(&self) -> Vec<String> {
        log::complaints(&self.log("browser").await)
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.session.post("se/log", json!({ "type": kind })).await.expect("a log");
        entries.as_array().expect("entries").clone()
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.session.post("goog/cdp/execute", body).await.expect(command)
    }
}

/// Whether tests without a browser fail.
fn required() -> bool {
    std::env::vars().any(|(name, value)| name == "BROWSER_TESTS" && value == "required")
}

/// Chromium and chromedriver, or which of them is missing.
fn programs() -> Result<(PathBuf, PathBuf), &'static str> {
    let path = std::env::vars_os().find(|(name, _)| name == "PATH").map(|(_, value)| value);
    let directories: Vec<PathBuf> = std::env::split_paths(&path.unwrap_or_default()).collect();
    let find = |names: &[&str]| {
        let files = names.iter().flat_map(|name| directories.iter().map(move |dir| dir.join(name)));
        files.into_iter().find(|file| file.is_absolute() && file.is_file())
    };
    let chromium = find(&["chromium", "chromium-browser", "google-chrome"]).ok_or("no Chromium")?;
    let chromedriver = find(&["chromedriver"]).ok_or("no chromedriver")?;
    Ok((chromium, chromedriver))
}

fn arguments(setup: &Setup, profile: &std::path::Path) -> Vec<String> {
    let mut rules: Vec<String> =
        setup.hosts.iter().map(|host| format!("MAP {host} 127.0.0.1")).collect();
    rules.extend([
        "MAP * ~NOTFOUND".into(),
        "EXCLUDE 127.0.0.1".into(),
        "EXCLUDE localhost".into(),
    ]);
    let mut arguments = vec![
        "--headless=new".to_owned(),
        // A container has little of it.
        "--disable-dev-shm-usage".to_owned(),
        "--hide-scrollbars".to_owned(),
        "--no-proxy-server".to_owned(),
        format!("--user-data-dir={}", profile.display()),
        format!("--host-resolver-rules={}", rules.join(", ")),
    ];
    // Chromium's sandbox does not run as root, and what it shows here is our own.
    if rustix::process::geteuid().is_root() {
        arguments.push("--no-sandbox".into());
    }
    arguments
}

fn preferences(setup: &Setup) -> Value {
    const BLOCKED: u32 = 2;
    if setup.javascript {
        json!({})
    } else {
        json!({ "profile.managed_default_content_settings.javascript": BLOCKED })
    }
}
