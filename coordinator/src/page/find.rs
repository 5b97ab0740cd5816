//! *Find*: one field for a delivery's id, a trace id, an issue, a change's id, or a login.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use contract::{
    change::Change,
    envelope,
    event::IssueEvent,
    names::{CHANGES, EVENTS},
    timestamp::Timestamp,
};
use maud::{Markup, html};

use super::{
    delivery::{self, issue_address},
    failure::Answer,
    fields::Fields,
    layout::{self, Part},
    reads::{Found, ReadError, Reads},
    security::Viewer,
    state::Shared,
    text,
};

/// Messages of each stream that are looked through for a login.
const NEWEST: u64 = 1_000;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Issues that are listed.
const MOST: usize = 100;

/// What a text is the key of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Delivery(String),
    Issue(String, String, u64),
    Login(String),
    Nothing,
}

/// What a text is the key of.
fn key(text: &str) -> Key {
    let text = text.trim();
    let (id, kind) = text.split_once(':').unwrap_or((text, ""));
    let is_kind = kind.bytes().all(|byte| byte.is_ascii_lowercase());
    if is_kind && let Ok(id) = delivery::id(id) {
        return Key::Delivery(id.to_string());
    }
    if let Some((owner, repository, number)) = issue(text) {
        return Key::Issue(owner, repository, number);
    }
    let login = text.strip_prefix('@').unwrap_or(text);
    let is_login = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !login.is_empty() && login.chars().count() <= 100 && login.chars().all(is_login) {
        return Key::Login(login.to_owned());
    }
    Key::Nothing
}

/// Reads `owner/repo#7`, `owner/repo/issues/7`, and the address of an issue, also of a Gitea below a
/// path.
fn issue(text: &str) -> Option<(String, String, u64)> {
    let parts = |owner: &str, repository: &str, number: &str| {
        let is_name = |name: &str| !name.is_empty() && !name.contains(char::is_whitespace);
        let good = is_name(owner) && is_name(repository);
        good.then_some(())?;
        Some((owner.to_owned(), repository.to_owned(), number.parse().ok()?))
    };
    if let Ok(url) = url::Url::parse(text)
        && matches!(url.scheme(), "http" | "https")
    {
        let decoded = |segment: &str| {
            percent_encoding::percent_decode_str(segment)
                .decode_utf8()
                .map(|text| text.into_owned())
        };
        let segments: Vec<String> =
            url.path_segments()?.map(decoded).collect::<Result<_, _>>().ok()?;
        let at = segments.iter().rposition(|segment| segment == "issues")?;
        let (repository, owner) =
            (segments.get(at.checked_sub(1)?)?, segments.get(at.checked_sub(2)?)?);
        return parts(owner, repository, segments.get(at + 1)?);
    }
    if let Some((name, number)) = text.split_once('#') {
        let (owner, repository) = name.split_once('/')?;
        return (!repository.contains('/')).then(|| parts(owner, repository, number))?;
    }
    match text.trim_matches('/').split('/').collect::<Vec<_>>()[..] {
        [owner, repository, "issues", number] => parts(owner, repository, number),
        _ => None,
    }
}

/// The page, or the way to what was meant.
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = Fields::parse(query.unwrap_or_default());
    let sought = query.get("q");
    Ok(match key(sought) {
        Key::Delivery(id) => Redirect::to(&format!("/deliveries/{id}")).into_response(),
        Key::Issue(owner, repository, number) => {
            Redirect::to(&issue_address(&owner, &repository, number)).into_response()
        }
        Key::Login(login) => of_login(&shared, &viewer, &login).await,
        Key::Nothing if sought.is_empty() => help(&viewer, StatusCode::OK, html! {}),
        Key::Nothing => {
            let shown = text::line(sought, text::TITLE);
            let note = html! { div.note.warn role="status" { p { "Nothing found: “" (shown) "” is none of these." } } };
            help(&viewer, StatusCode::BAD_REQUEST, note)
        }
    })
}

fn help(viewer: &Viewer, code: StatusCode, note: Markup) -> Response {
    let main = html! {
        (note)
        p { "The field above takes" }
        ul {
            li { "a delivery's id as Gitea shows it, with or without its dashes; without them it is the trace id" }
            li { "an issue: " code { "owner/repo#7" } ", or its address in Gitea" }
            li { "a change's id: " code { "<delivery>:assigned" } }
            li { "somebody's login" }
        }
    };
    (code, layout::page(viewer, Part::Find, "Find", main)).into_response()
}

/// The one word that only the newest message tells.
const IS_ASSIGNED: &str = "is assigned";

/// What somebody has to do with an issue.
#[derive(Clone, Debug, Default, PartialEq)]
struct Role {
    title: String,
    at: Option<Timestamp>,
    what: Vec<&'static str>,
}

type Issues = BTreeMap<(String, String, u64), Role>;

/// A find: the issue, its title, when, and what the person is in it.
type Hit = ((String, String, u64), String, Timestamp, Vec<&'static str>);

fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn of_change(change: &Change, login: &str, at: Timestamp) -> Option<Hit> {
    let has = |logins: &[String]| logins.iter().any(|one| same(one, login));
    let mut what = Vec::new();
    for (is, word) in [
        (has(&change.added), "was assigned"),
        (has(&change.removed), "was unassigned"),
        (has(&change.assignees), IS_ASSIGNED),
        (same(&change.sender.login, login), "acted"),
    ] {
        if is {
            what.push(word);
        }
    }
    let place =
        (change.repository.owner.clone(), change.repository.name.clone(), change.issue.number);
    (!what.is_empty()).then(|| (place, change.issue.title.clone(), at, what))
}

fn of_event(event: &IssueEvent, login: &str, at: Timestamp) -> Option<Hit> {
    let mut what = Vec::new();
    if event.issue.assignees.iter().any(|user| same(&user.login, login)) {
        what.push(IS_ASSIGNED);
    }
    if same(&event.sender.login, login) {
        what.push("acted");
    }
    if same(&event.issue.author.login, login) {
        what.push("opened it");
    }
    let place = (event.repository.owner.clone(), event.repository.name.clone(), event.issue.number);
    (!what.is_empty()).then(|| (place, event.issue.title.clone(), at, what))
}

/// Puts what was found together, by issue.
fn put_together(hits: Vec<Hit>) -> Issues {
    let mut issues = Issues::new();
    for (place, title, at, what) in hits {
        let known = issues.entry(place).or_default();
        let is_newest = known.at.is_none_or(|before| before <= at);
        if is_newest {
            (known.title, known.at) = (title, Some(at));
            // What was so before may not be so any more.
            known.what.retain(|word| *word != IS_ASSIGNED);
        }
        for word in what {
            if !known.what.contains(&word) && (is_newest || word != IS_ASSIGNED) {
                known.what.push(word);
            }
        }
    }
    issues
}

async fn of_login(shared: &Shared, viewer: &Viewer, login: &str) -> Response {
    let reads = Reads::new(shared.peers.broker(), PATIENCE);
    let (changes, events) = futures::future::join(
        newest(&reads, CHANGES, |payload, at| {
            of_change(&envelope::read_change(payload).ok()?, login, at)
        }),
        newest(&reads, EVENTS, |payload, at| {
            of_event(&envelope::read_event(payload).ok()?, login, at)
        }),
    )
    .await;
    let mut searched = Searched::default();
    searched.add("changes", changes);
    searched.add("events", events);
    let Searched { hits, looked_through, notes } = searched;
    let mut issues: Vec<_> = put_together(hits).into_iter().collect();
    issues.sort_by_key(|(_, part)| std::cmp::Reverse(part.at));
    let shown = text::line(login, text::NAME);
    let rows = html! {
        @for ((owner, repository, number), part) in issues.iter().take(MOST) {
            tr {
                th scope="row" {
                    a href=(issue_address(owner, repository, *number)) {
                        (text::line(&format!("{owner}/{repository}#{number}"), text::TITLE))
                    }
                }
                td.words { (text::line(&part.title, text::TITLE)) }
                td { (part.what.join(", ")) }
                td { @if let Some(at) = part.at { (text::time(at)) } }
            }
        }
    };
    let main = html! {
        (layout::notes(&notes, None))
        @if !looked_through.is_empty() {
            p.quiet { "Looked through " (looked_through.join(" and ")) ". What is older is not found here." }
        }
        @if issues.is_empty() {
            @if !looked_through.is_empty() { p { "Nothing of " strong { (shown) } " in them." } }
        } @else {
            (layout::table("Issues, the newest first", &["Issue", "Title", "What", "Last"], rows))
        }
    };
    let title = format!("What {shown} has to do with");
    layout::found_page(viewer, Part::Find, &title, login, main).into_response()
}

/// What streams were looked through for.
#[derive(Debug, Default)]
struct Searched {
    hits: Vec<Hit>,
    looked_through: Vec<String>,
    notes: Vec<String>,
}

impl Searched {
    /// Adds what was found among the newest messages of a stream, as many as there were.
    fn add(&mut self, what: &str, read: Result<(Found<Hit>, u64), ReadError>) {
        let (found, there) = match read {
            Ok(found) => found,
            Err(error) => {
                self.notes.push(format!("The {what} could not be read: {error}."));
                return;
            }
        };
        self.hits.extend(found.items);
        let newest = format!("the newest {} {what}", text::number(there));
        match found.cut_short {
            Some(error) => {
                self.notes.push(format!("Only some of {newest} were looked through: {error}."));
            }
            None => self.looked_through.push(newest),
        }
    }
}

/// What was found among the newest messages of a stream, and how many there are of them.
async fn newest(
    reads: &Reads,
    name: &str,
    hit: impl Fn(&[u8], Timestamp) -> Option<Hit>,
) -> Result<(Found<Hit>, u64), ReadError> {
    reads.newest_of_all(name, NEWEST, |message| hit(&message.payload, message.time)).await
}

#[cfg(test)]
mod tests {
    use contract::{change::ChangeKind, event};

    use super::*;

    #[test]
    fn a_text_is_known_by_its_shape() {
        let id = "b60f8ed3-6a1a-4e58-b31e-0b00968f94cb";
        let delivery = || Key::Delivery(id.into());
        let issue = |owner: &str| Key::Issue(owner.into(), "docs.site".into(), 7);
        for (text, expected) in [
            (id, delivery()),
            ("  B60F8ED36A1A4E58B31E0B00968F94CB ", delivery()),
            ("b60f8ed3-6a1a-4e58-b31e-0b00968f94cb:assigned", delivery()),
            ("acme/docs.site#7", issue("acme")),
            ("acme/docs.site/issues/7", issue("acme")),
            ("/acme/docs.site/issues/7/", issue("acme")),
            ("https://gitea.example.com/acme/docs.site/issues/7#issuecomment-3", issue("acme")),
            ("http://h:3000/below/acme/docs.site/issues/7?x=1", issue("acme")),
            ("http://h/%C3%A4/docs.site/issues/7", issue("ä")),
            ("bot", Key::Login("bot".into())),
            ("@maria.k-1", Key::Login("maria.k-1".into())),
            ("", Key::Nothing),
            ("acme/docs.site#x", Key::Nothing),
            ("acme/docs.site#-1", Key::Nothing),
            ("a/b/c#7", Key::Nothing),
            ("http://h/issues/7", Key::Nothing),
            ("http://h/acme/docs.site/pulls/7", Key::Nothing),
            ("<script>alert(1)</script>", Key::Nothing),
            ("../../etc/passwd", Key::Nothing),
            ("two words", Key::Nothing),
        ] {
            assert_eq!(key(text), expected, "{text}");
        }
    }

    #[test]
    fn a_search_that_was_cut_short_says_so_also_where_it_found_something() {
        let at = Timestamp::from_unix_micros;
        let hit = || of_event(&event::example(), "bot", at(1)).expect("a hit");
        let found = |cut_short| Found { items: vec![hit()], cut_short, from: 1 };
        let mut searched = Searched::default();
        searched.add("changes", Ok((found(Some(ReadError::TooLate)), 1_000)));
        searched.add("events", Ok((found(None), 7)));
        assert_eq!(searched.hits.len(), 2);
        assert_eq!(searched.looked_through, ["the newest 7 events"]);
        let note = "Only some of the newest 1\u{202f}000 changes were looked through: \
                    NATS did not answer in time.";
        assert_eq!(searched.notes, [note]);
        searched.add("events", Err(ReadError::NoConnection));
        assert!(searched.notes[1].starts_with("The events could not be read"));
    }

    #[test]
    fn somebody_is_found_in_all_that_they_do() {
        let at = Timestamp::from_unix_micros;
        let event = event::example();
        let mut change = Change::from_event(ChangeKind::Assigned, &event);
        change.added = vec!["Bot".into()];
        let hits = [
            of_change(&change, "bot", at(2)),
            of_event(&event, "bot", at(1)),
            of_event(&event, "nobody", at(3)),
        ];
        let issues = put_together(hits.into_iter().flatten().collect());
        let part = &issues[&("acme".to_owned(), "widgets".to_owned(), 1)];
        assert_eq!(part.what, ["was assigned", "is assigned"]);
        assert_eq!(part.at, Some(at(2)));
        change.assignees.clear();
        (change.added, change.removed) = (Vec::new(), vec!["bot".into()]);
        for times in [(1, 2), (2, 1)] {
            let hits =
                [of_event(&event, "bot", at(times.0)), of_change(&change, "bot", at(times.1))];
            let issues = put_together(hits.into_iter().flatten().collect());
            let part = &issues[&("acme".to_owned(), "widgets".to_owned(), 1)];
            assert_eq!(part.what.contains(&IS_ASSIGNED), times.0 > times.1, "{:?}", part.what);
        }
        let maria = of_event(&event, "maria", at(1)).expect("a hit");
        assert_eq!(maria.3, ["acted", "opened it"]);
    }
}
