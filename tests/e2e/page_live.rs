//! What a live page says of itself while the process behind it stands still. In a real Chromium.

use std::path::Path;

use serde_json::{Value, json};
use tests::{
    browser::{Browser, Setup},
    nats::Nats,
    services::both_at,
    temp_dir, wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

/// Hides or shows the page, as another tab does.
const HIDE: &str =
    "Object.defineProperty(document, 'hidden', {configurable: true, value: arguments[0]});
    document.dispatchEvent(new Event('visibilitychange'));";
/// Leaves what is read, and returns the state once the page has seen it.
const LEAVE: &str = "document.activeElement.blur();
    return new Promise(done => setTimeout(
        () => done(document.getElementById('live-state').textContent)));";
const STATE: &str = "return document.getElementById('live-state').textContent";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_cannot_connect_is_not_live() {
    let Some(browser) = Browser::start(&Setup::default()).await else { return };
    let (nats, data) = (Nats::start().await, temp_dir());
    let both = both_at(Path::new(EXE), &nats.url(), data.path(), &[]).await;
    browser.open(&format!("{}/", both.pages)).await;
    let becomes = async |state: &str| {
        wait::until_equal(state, Value::from(state), || browser.run(STATE, json!([]))).await;
    };
    becomes("live").await;
    // Something new waits until nobody reads in the region.
    browser.run("document.querySelector('[data-live] .scroll').focus()", json!([])).await;
    becomes("paused: the focus or a selection is below").await;
    browser.run(HIDE, json!([true])).await;
    both.process.signal("STOP");
    browser.run(HIDE, json!([false])).await;
    becomes("connecting").await;
    assert_eq!(browser.run(LEAVE, json!([])).await, "connecting", "what waited is old");
    wait::until("the silence to be told", || async {
        let state = browser.run(STATE, json!([])).await;
        state.as_str()?.starts_with("nothing new for ").then_some(())
    })
    .await;
    both.process.signal("CONT");
    becomes("live").await;
}
