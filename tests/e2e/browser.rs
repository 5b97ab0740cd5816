//! The pages as people meet them: in a real Chromium. Where there is none, each test says that it is skipped.
//!
//! With `SCREENSHOTS` set to a directory, pictures of the pages are written there.

mod attacker;
mod world;

use std::{path::Path, time::Duration};

use axum::{Router, response::Html, routing::get};
use contract::names;
use coordinator::delivery::id_of;
use serde_json::json;
use tests::{
    browser::{Browser, Finding, Key, Scheme, Screen, Setup, fetch_axe},
    bus,
    gitea::{Delivery, Issue},
    runners::Agents,
    wait,
};
use tokio::net::TcpListener;

use self::{attacker::Attacker, world::World};

/// The field of each page that takes what somebody looks for.
const FIND: &str = "header input[name=q]";
/// Largest page without what it links to, in bytes.
const LARGEST_PAGE: usize = 30_000;
/// Height of a picture in `docs/screenshots`, in pixels.
const PICTURE: u32 = 800;

/// What is wrong with a page for somebody, if anything.
async fn faults(browser: &Browser, origin: &str, axe: &str) -> Vec<String> {
    let mut faults: Vec<String> = browser
        .accessibility(axe)
        .await
        .into_iter()
        .filter(Finding::is_serious)
        .map(|finding| format!("{} ({}): {:#?}", finding.rule, finding.impact, finding.elements))
        .collect();
    match browser.overflow().await {
        0 => {}
        pixels => faults.push(format!("{pixels} pixels wider than the screen")),
    }
    faults.extend(browser.complaints().await);
    let left = browser.requests().await.into_iter().filter(|request| request.leaves(origin));
    faults.extend(left.map(|request| format!("asked {}", request.url)));
    faults
}

/// The source of axe-core.
fn axe() -> String {
    fetch_axe(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// The addresses of pages of each kind.
async fn pages(world: &World) -> Vec<String> {
    let delivery = world.event(1, "assigned").await.delivery.id;
    let run = world.run(3, "agent", "running").await;
    let waiting = world.run(1, "triage", "waiting").await;
    let failed = world.run(5, "review", "failed").await;
    let mut pages: Vec<String> = pictured(&delivery, &run).map(|(_, page)| page).into();
    pages.extend([
        "/find".into(),
        "/runbook".into(),
        "/dead-letters/1".into(),
        "/dead-letters/confirm?what=redrive-all".into(),
        format!("/deliveries/{delivery}/redeliver"),
        format!("/deliveries/{delivery}?payload=1"),
        format!("{run}/stop"),
        waiting,
        format!("{failed}/again"),
        failed,
        "/login".into(),
        "/no-such-page".into(),
    ]);
    pages
}

/// How many pages have a picture.
const PICTURED: usize = 7;

/// The pages of which there are pictures, and the names of these in `docs/screenshots`.
fn pictured(delivery: &str, run: &str) -> [(&'static str, String); PICTURED] {
    [
        ("now", "/".into()),
        ("find", "/find?q=bot".into()),
        ("delivery", format!("/deliveries/{delivery}")),
        ("issue", "/issues/acme/widgets/1".into()),
        ("dead-letters", "/dead-letters".into()),
        ("runs", "/runs".into()),
        ("run", run.into()),
    ]
}

#[tokio::test]
async fn a_page_with_faults_is_seen_through() {
    const PAGE: &str = "<!doctype html><html lang=en><title>T</title>\
        <meta name=viewport content='width=device-width'>\
        <meta http-equiv=Content-Security-Policy content=\"script-src 'none'\">\
        <main><h1>T</h1><input><img alt=x src=http://example.com/x.png><script>1</script>\
        <div style='width: 2000px'>wide</div></main></html>";
    let Some(browser) = Browser::start(&Setup::default()).await else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let origin = format!("http://{}", listener.local_addr().expect("its address"));
    let router = Router::new().route("/", get(|| async { Html(PAGE) }));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    browser.show_on(Screen::Phone).await;
    browser.open(&format!("{origin}/")).await;
    let faults = faults(&browser, &origin, &axe()).await;
    for expected in [
        "label (critical)",
        "pixels wider than the screen",
        "Content Security Policy",
        "asked http://example.com/x.png",
    ] {
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:#?}");
    }
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_page_is_for_everybody() {
    let Some(browser) = Browser::start(&Setup::default()).await else { return };
    let (world, axe) = (World::with_agents(&[]).await, axe());
    world.live_through_a_morning().await;
    // More than a page of them, with more text than it shows.
    world.give_up(40, 60, &"the handler failed: the agent's queue is full; ".repeat(8)).await;
    let pages = pages(&world).await;
    let mut found = Vec::new();
    // Both schemes and both screens for all, and each with each for those with a picture.
    for (screen, scheme, pages) in [
        (Screen::Desktop, Scheme::Light, &pages[..]),
        (Screen::Phone, Scheme::Dark, &pages[..]),
        (Screen::Desktop, Scheme::Dark, &pages[..PICTURED]),
        (Screen::Phone, Scheme::Light, &pages[..PICTURED]),
    ] {
        browser.show_on(screen).await;
        browser.prefer(scheme).await;
        for page in pages {
            browser.open(&world.at(page)).await;
            let mut faults = faults(&browser, world.origin(), &axe).await;
            // The browser complains about the status as well.
            let refused = [("/no-such-page", "status of 404"), ("/login", "status of 401")];
            faults.retain(|fault| {
                !refused.iter().any(|(of, status)| page == of && fault.contains(status))
            });
            found.extend(
                faults.iter().map(|fault| format!("{page} {screen:?} {scheme:?}: {fault}")),
            );
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    for page in &pages {
        let answer = http.get(world.at(page)).send().await.expect("a page");
        let size = answer.bytes().await.expect("a page").len();
        assert!(size < LARGEST_PAGE, "{page} has {size} bytes");
    }
}

/// Writes `docs/screenshots`, where it is asked to. It takes some minutes, for charts to show something.
#[tokio::test(flavor = "multi_thread")]
async fn pictures() {
    let wanted = std::env::vars_os().find(|(name, _)| name == "SCREENSHOTS");
    let Some((_, directory)) = wanted else { return };
    let Some(browser) = Browser::start(&Setup::default()).await else { return };
    let world = World::with_agents(&[]).await;
    world.live_through_a_morning().await;
    world.work_on(Duration::from_secs(400)).await;
    for (number, error) in [
        "decode: the payload is not of the expected shape (line 1, column 7)",
        "given up after 5 attempts: workers ended with it in hand",
        "decode: the payload has version 3, this program reads up to 1",
    ]
    .into_iter()
    .enumerate()
    {
        world.give_up(40 + number as u64, 1, error).await;
    }
    let delivery = world.event(1, "assigned").await.delivery.id;
    let run = world.run(3, "agent", "running").await;
    for (name, page) in pictured(&delivery, &run) {
        browser.open(&world.at(&page)).await;
        if name == "now" || name == "run" {
            browser.shows("live").await;
        }
        let picture = browser.screenshot(PICTURE).await;
        let file = Path::new(&directory).join(format!("{name}.png"));
        std::fs::write(file, picture).expect("write a picture");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_without_javascript() {
    const TOKEN: &str = "the-token-of-the-operators-0123456789";
    let without = Setup { javascript: false, ..Setup::default() };
    let Some(browser) = Browser::start(&without).await else { return };
    let world = World::with_agents(&[("OPERATOR_TOKEN", TOKEN)]).await;
    world.live_through_a_morning().await;
    world.give_up(40, 2, "the agent's queue is full").await;

    // Whoever has no token sees nothing, and a wrong one does not help.
    let id = world.event(1, "assigned").await.delivery.id;
    browser.open(&world.at(&format!("/deliveries/{id}"))).await;
    assert_eq!(browser.status().await, 401);
    browser.fill("input[name=token]", "another-one-0123456789").await;
    browser.press([Key::Enter]).await;
    browser.shows("That is not the token").await;
    browser.fill("input[name=token]", TOKEN).await;
    browser.press([Key::Enter]).await;
    browser.shows("The last hour").await;

    for (page, expected) in [
        ("/".to_owned(), "acme/widgets"),
        ("/find?q=bot".to_owned(), "Login page returns 500"),
        (format!("/deliveries/{id}"), "acme/widgets#1"),
        (format!("/deliveries/{id}?payload=1"), "\"login\": \"bot\""),
        ("/issues/acme/widgets/1".to_owned(), "assigned +bot"),
        ("/dead-letters".to_owned(), "the agent's queue is full"),
        ("/runbook".to_owned(), "CoordinatorDeadLetters"),
    ] {
        browser.open(&world.at(&page)).await;
        browser.shows(expected).await;
    }

    // A delivery comes once more.
    let events = bus::count(&world.js, names::EVENTS).await;
    browser.open(&world.at(&format!("/deliveries/{id}"))).await;
    browser.click(&format!("a[href='/deliveries/{id}/redeliver']")).await;
    browser.shows(&format!("Redeliver {id}?")).await;
    browser.click("main form button").await;
    browser.shows("Published again").await;
    assert_eq!(bus::count(&world.js, names::EVENTS).await, events + 1);

    // One letter is dropped, and one is redriven.
    for (what, asked, ended) in [
        ("drop", "Drop 1 dead letter?", "1 of 1 dropped"),
        ("redrive", "Redrive 1 dead letter?", "1 of 1 redriven"),
    ] {
        browser.open(&world.at("/dead-letters")).await;
        browser.click("input[name=sequence]").await;
        browser.click(&format!("button[value={what}]")).await;
        browser.shows(asked).await;
        browser.click("main form[method=post] button").await;
        browser.shows("of 1 ").await;
        wait::until("the job to end", || async {
            browser.reload().await;
            browser.text().await.contains(ended).then_some(())
        })
        .await;
    }
    assert_eq!(world.dead_letters().await, 0);
    assert_eq!(bus::count(&world.js, names::EVENTS).await, events + 2);

    a_run_is_stopped_and_runs_again(&browser, &world, false).await;

    browser.click("form[action='/logout'] button").await;
    browser.shows("Log in").await;
    assert_eq!(browser.status().await, 401);
}

/// From the list on, by clicks alone.
async fn a_run_is_stopped_and_runs_again(browser: &Browser, world: &World, is_live: bool) {
    let (run, issue) = (world.run(3, "agent", "running").await, "acme/widgets#3");
    let noted = async |what: &str, times: usize| world.agents.noted(issue, what, times).await;
    let shows = async |text: &str| {
        if !is_live {
            // A page is as it was when it was asked for.
            wait::until(text, || async {
                browser.reload().await;
                browser.text().await.contains(text).then_some(())
            })
            .await;
        }
        browser.shows(text).await;
    };
    browser.open(&world.at("/runs?phase=running")).await;
    browser.click(&format!("a[href='{run}']")).await;
    browser.shows("All runs").await;
    shows("colors by prefers-color-scheme").await;

    browser.click(&format!("a[href='{run}/stop']")).await;
    browser.shows("All its processes get TERM").await;
    noted("term", 0).await;
    browser.click("main form[method=post] button.danger").await;
    browser.shows("It was told to stop.").await;
    noted("term", 1).await;
    shows("by hand").await;
    shows("stopped since").await;

    // What can be done with it is another matter by now.
    browser.open(&world.at(&run)).await;
    browser.click(&format!("a[href='{run}/again']")).await;
    browser.shows("The command gets the issue as it is then.").await;
    noted("start", 1).await;
    browser.click("main form[method=post] button").await;
    browser.shows("It was queued again.").await;
    noted("start", 2).await;
    shows("running since").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_looks_for_is_found_while_more_comes_in() {
    let Some(browser) = Browser::start(&Setup::default()).await else { return };
    let world = World::with_agents(&[]).await;
    world.live_through_a_morning().await;

    // What comes in shows without a reload.
    browser.open(&world.at("/")).await;
    browser.run("window.same = true", json!([])).await;
    let row = "return [...document.querySelectorAll('tr')].map(row => row.innerText)
        .find(text => text.includes(arguments[0]))";
    let events = browser.run(row, json!([names::EVENTS])).await;
    assert!(events.is_string(), "no row of {}", names::EVENTS);
    world.send(&Issue::new(7, 1).delivery("opened")).await;
    wait::until("the page to change", || async {
        (browser.run(row, json!([names::EVENTS])).await != events).then_some(())
    })
    .await;
    assert_eq!(browser.run("return window.same", json!([])).await, true, "it was loaded again");
    // Who reads in it is not interrupted, and is told that it stands still.
    let state = "return document.getElementById('live-state').textContent";
    for (what, expected) in [
        (
            "document.querySelector('[data-live] .scroll').focus()",
            "paused: the focus or a selection is below",
        ),
        ("document.activeElement.blur()", "live"),
    ] {
        browser.run(what, json!([])).await;
        wait::until_equal(what, json!(expected), || browser.run(state, json!([]))).await;
    }

    let event = world.event(1, "assigned").await;
    let id = event.delivery.id.as_str();
    let trace = id.replace('-', "");
    let changes = bus::changes(&world.js).await;
    let change = changes.iter().find(|change| change.cause.delivery_id == id).expect("a change");
    for (key, expected) in [
        (id, id),
        (&id.to_uppercase(), id),
        (&trace, id),
        (&change.message_id(), id),
        ("acme/widgets#1", "assigned +bot"),
        ("li-wei", "Invoices show the net amount twice"),
        ("acme/widgets#4711", "no event of it came"),
    ] {
        browser.open(&world.at("/find")).await;
        browser.fill(FIND, key).await;
        browser.press([Key::Enter]).await;
        browser.shows(expected).await;
    }

    // With the keyboard alone.
    browser.open(&world.at("/")).await;
    let focused = "return document.activeElement.matches(arguments[0])";
    let mut tabs = 0;
    while browser.run(focused, json!([FIND])).await != true {
        browser.press([Key::Tab]).await;
        tabs += 1;
        assert!(tabs < 10, "the focus does not come to the field");
    }
    browser.press(Key::text(id)).await;
    browser.press([Key::Enter]).await;
    browser.shows("Its fate").await;
    assert_eq!(browser.complaints().await, [""; 0]);

    // What is nothing is said to be nothing.
    browser.fill(FIND, "no such thing").await;
    browser.press([Key::Enter]).await;
    browser.shows("Nothing found").await;

    a_run_is_stopped_and_runs_again(&browser, &world, true).await;
    output_is_read_while_more_is_written(&browser, &world).await;
}

/// Whoever reads what was written before stays there, and whoever is at its end sees more of it.
async fn output_is_read_while_more_is_written(browser: &Browser, world: &World) {
    let output = "const output = document.querySelector('[data-live] pre');
        const end = output.scrollHeight - output.clientHeight;";
    let returned = async |script: &str| browser.run(&format!("{output} {script}"), json!([])).await;
    browser.open(&world.at(&world.run(3, "agent", "running").await)).await;
    browser.shows("live").await;
    assert_eq!(returned("return end > 100").await, true, "it is longer than what is shown of it");
    let is_at_end = "return end - output.scrollTop < 2";
    assert_eq!(returned(is_at_end).await, true, "it begins with the newest");
    returned("output.scrollTop = 50; output.dataset.before = 1").await;
    let is_anew = async || {
        wait::until("the region to be shown anew", || async {
            (returned("return output.dataset.before ?? 0").await == 0).then_some(())
        })
        .await;
    };
    is_anew().await;
    assert_eq!(returned("return output.scrollTop").await, 50);
    returned("output.scrollTop = end; output.dataset.before = 1").await;
    std::fs::write(world.agents.log().with_extension("more"), "").expect("write");
    browser.shows("pushed the branch").await;
    assert_eq!(returned(is_at_end).await, true, "the newest is out of sight");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_dead_letters_are_redriven() {
    const LETTERS: u64 = 1_000;
    let Some(browser) = Browser::start(&Setup::default()).await else { return };
    let world = World::start(&[]).await;
    let assigned = Issue::new(7, 1).assigned(&["bot"]);
    world.send(&assigned.delivery("assigned")).await;
    wait::until_equal("a change", 1, || bus::count(&world.js, names::CHANGES)).await;
    world.give_up(LETTERS, LETTERS, "the agent's queue is full").await;
    world.give_up(10, 1, "something else").await;

    browser.open(&world.at("/dead-letters")).await;
    browser.fill("main input[name=q]", "queue is full").await;
    browser.press([Key::Enter]).await;
    wait::until("the filtered list", || async { browser.url().await.contains("q=").then_some(()) })
        .await;
    // What was not read in time is not there, and the page says so.
    wait::until("all of it", || async {
        let is_there = browser.count("button[value=redrive-all]").await > 0;
        if !is_there {
            browser.reload().await;
        }
        is_there.then_some(())
    })
    .await;
    browser.click("button[value=redrive-all]").await;
    // Nothing has happened yet.
    browser.shows("1000 events are published again").await;
    assert_eq!(browser.text_of("h1").await.as_deref(), Some("Redrive 1\u{202f}000 dead letters?"));
    assert_eq!(world.dead_letters().await, LETTERS + 1);
    browser.click("main form[method=post] button").await;
    browser.shows("of 1\u{202f}000 redriven").await;
    browser.run("window.same = true", json!([])).await;
    browser.shows("1\u{202f}000 of 1\u{202f}000 redriven").await;
    browser.shows("Ended.").await;
    assert_eq!(browser.run("return window.same", json!([])).await, true, "it was loaded again");
    assert_eq!(world.dead_letters().await, 1);
    wait::until_equal("all to be told", LETTERS + 1, || bus::count(&world.js, names::CHANGES))
        .await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_other_sites_gets_in_or_out() {
    let rebound = Setup { hosts: vec!["evil.test".into()], ..Setup::default() };
    let Some(browser) = Browser::start(&rebound).await else { return };
    let world = World::start(&[]).await;
    world.send(&Issue::new(7, 1).assigned(&["bot"]).delivery("assigned")).await;
    wait::until_equal("a change", 1, || bus::count(&world.js, names::CHANGES)).await;
    world.give_up(40, 3, "the agent's queue is full").await;
    let pages = world.origin();
    let id = bus::events(&world.js).await.remove(0).delivery.id;

    // Under a host name that the attacker's server had, and that now leads here.
    let (_, port) = pages.rsplit_once(':').expect("a port");
    browser.open(&format!("http://evil.test:{port}/")).await;
    assert_eq!(browser.status().await, 421);

    // A page of ours holds the token that its forms need, so nobody else may read one.
    browser.open(&world.at("/dead-letters/confirm?what=drop-all")).await;
    browser.shows("Drop 3 dead letters?").await;
    for host in ["127.0.0.1", "evil.test"] {
        let framing = Attacker::start(format!("<iframe src='{pages}/'></iframe>")).await;
        browser.open(&framing.url(host)).await;
        assert_eq!(browser.framed().await, "chrome-error://chromewebdata/", "from {host}");

        let reading = Attacker::start(format!(
            "<script>
            window.read = [];
            const note = text => window.read.push(String(text));
            const way = options => fetch('{pages}/', options).then(a => a.text()).then(note, () => note(''));
            const source = new EventSource('{pages}/live');
            source.addEventListener('region', event => note(event.data));
            Promise.all([way(), way({{mode: 'no-cors'}}), way({{credentials: 'include'}}),
                new Promise(done => {{ source.onerror = done; }})]).then(() => window.done = true);
            </script>
            <script src='{pages}/live'></script><link rel=stylesheet href='{pages}/page.css'>"
        ))
        .await;
        browser.open(&reading.url(host)).await;
        wait::until("all ways to be tried", || async {
            (browser.run("return window.done", json!([])).await == true).then_some(())
        })
        .await;
        let read = browser.run("return window.read", json!([])).await;
        assert_eq!(read, json!(["", "", ""]), "from {host}");

        for (action, fields) in [
            ("/dead-letters/jobs".to_owned(), "what=drop-all"),
            ("/dead-letters/jobs".to_owned(), "what=redrive-all"),
            (format!("/deliveries/{id}/redeliver"), "x=1"),
            ("/runs/7.1.fix/stop".to_owned(), "generation=1"),
            ("/runs/7.1.fix/again".to_owned(), "generation=1"),
            ("/logout".to_owned(), "x=1"),
        ] {
            let (name, value) = fields.split_once('=').expect("a field");
            let posting = Attacker::start(format!(
                "<form method=post action='{pages}{action}'><input name={name} value={value}></form>
                <script>document.forms[0].submit()</script>"
            ))
            .await;
            browser.open(&posting.url(host)).await;
            browser.shows("does not come from a page of this host").await;
            assert_eq!(browser.status().await, 403, "{action} from {host}");
        }
    }
    assert_eq!(world.dead_letters().await, 3);
    assert_eq!(bus::count(&world.js, names::EVENTS).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn markup_from_outside_stays_text() {
    const MARKUP: &str =
        "</title></p>\"'><script>window.pwned=1</script><img src=x onerror=window.pwned=1>";
    let Some(browser) = Browser::start(&Setup::default()).await else { return };
    // It writes what it gets: the issue and the change, as JSON.
    let echo = Agents::rule_for(&format!("id = {}", id_of("bot")), "echo", "cat; exit 1", "");
    let world = World::with_rules(&echo, &[]).await;
    let mut issue = Issue::new(7, 1);
    issue.title = MARKUP.into();
    issue.body = MARKUP.into();
    let mut payload = issue.assigned(&["bot"]).payload("assigned");
    payload["sender"]["login"] = MARKUP.into();
    payload["issue"]["assignees"][0]["login"] = MARKUP.into();
    payload["issue"]["labels"] = json!([{"id": 1, "name": MARKUP}]);
    let delivery = Delivery::signed(&payload, "issue_assign");
    world.send(&delivery).await;
    wait::until_equal("a change", 1, || bus::count(&world.js, names::CHANGES)).await;
    world.give_up(40, 1, MARKUP).await;
    let run = "/runs/7.1.echo";
    wait::until("the run to end", || async {
        browser.open(&world.at(run)).await;
        browser.text().await.contains("failed since").then_some(())
    })
    .await;

    let id = delivery.id();
    let escaped = form_urlencoded::byte_serialize(MARKUP.as_bytes()).collect::<String>();
    for (page, holds) in [
        ("/".to_owned(), false),
        (format!("/deliveries/{id}"), true),
        (format!("/deliveries/{id}?payload=1"), true),
        (format!("/deliveries/{id}/redeliver"), true),
        (format!("/deliveries/{escaped}"), true),
        ("/issues/acme/r7/1".to_owned(), true),
        ("/find?q=maria".to_owned(), false),
        (format!("/find?q={escaped}"), true),
        ("/dead-letters".to_owned(), true),
        (format!("/dead-letters?q={escaped}"), true),
        ("/dead-letters/1".to_owned(), true),
        ("/dead-letters/confirm?what=drop-all".to_owned(), false),
        (format!("/traces/{escaped}"), true),
        (format!("/runbook/{escaped}"), false),
        ("/runs".to_owned(), true),
        (format!("/runs?q={escaped}&phase={escaped}"), true),
        (run.to_owned(), true),
        (format!("{run}/again"), false),
        (format!("/runs/{escaped}"), true),
    ] {
        browser.open(&world.at(&page)).await;
        let source = browser.run("return document.documentElement.outerHTML", json!([])).await;
        let source = source.as_str().expect("a text");
        assert!(!holds || source.contains("&lt;/title&gt;"), "{page} does not show it: {source}");
        let found = browser.count("img, script:not([src]), main script").await;
        let ran = browser.run("return window.pwned ?? 0", json!([])).await;
        assert_eq!((found, ran), (0, json!(0)), "{page}");
        let complaints = browser.complaints().await;
        let mut violations = complaints.iter().filter(|complaint| complaint.contains("security"));
        assert_eq!(violations.next(), None, "{page}");
    }
}
