//! The runbook: sections of `docs/OPERATIONS.md`, which is part of the program.

use axum::{
    Extension,
    response::{IntoResponse, Response},
};
use maud::{Markup, PreEscaped, html};
use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::{
    failure::{Answer, Failure},
    layout::{self, Part},
    of_path::OfPath,
    security::Viewer,
};

const TEXT: &str = include_str!("../../../docs/OPERATIONS.md");

/// A heading: its level, words and anchor, and where its section begins and ends among the events.
struct Heading {
    level: HeadingLevel,
    words: String,
    anchor: String,
    begin: usize,
    end: usize,
}

fn events() -> Vec<Event<'static>> {
    Parser::new_ext(TEXT, Options::ENABLE_TABLES).collect()
}

fn headings(events: &[Event<'_>]) -> Vec<Heading> {
    let mut headings: Vec<Heading> = Vec::new();
    let mut open: Option<(usize, HeadingLevel, String)> = None;
    for (index, event) in events.iter().enumerate() {
        match event {
            Event::Start(Tag::Heading { level, .. }) => open = Some((index, *level, String::new())),
            Event::Text(text) | Event::Code(text) => {
                if let Some((_, _, words)) = &mut open {
                    words.push_str(text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                if let Some((begin, level, words)) = open.take() {
                    for above in &mut headings {
                        if above.end == events.len() && above.level >= level {
                            above.end = begin;
                        }
                    }
                    let anchor = anchor(&words);
                    headings.push(Heading { level, words, anchor, begin, end: events.len() });
                }
            }
            _ => {}
        }
    }
    headings
}

/// The anchor that a heading has on a forge's page.
fn anchor(words: &str) -> String {
    let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Renders a section. HTML in it is text, links to other documents are their words.
fn render(section: &[Event<'static>]) -> Markup {
    let mut is_open = false;
    let mapped = section.iter().cloned().filter_map(|event| match event {
        Event::Html(html) | Event::InlineHtml(html) => Some(Event::Text(html)),
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let dest_url = match dest_url.strip_prefix('#') {
                Some(anchor) => CowStr::from(format!("/runbook/{anchor}")),
                None if dest_url.starts_with("https://") => dest_url,
                None => return None,
            };
            is_open = true;
            Some(Event::Start(Tag::Link { link_type, dest_url, title, id }))
        }
        Event::End(TagEnd::Link) => {
            std::mem::take(&mut is_open).then_some(Event::End(TagEnd::Link))
        }
        Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => None,
        event => Some(event),
    });
    // The title of the page is the first heading.
    let mapped = mapped.flat_map(|event| match event {
        Event::Start(Tag::Table(_)) => {
            let begin = r#"<div class="scroll" role="region" aria-label="Table" tabindex="0">"#;
            vec![Event::Html(begin.into()), event]
        }
        Event::End(TagEnd::Table) => vec![event, Event::Html("</div>".into())],
        event => vec![event],
    });
    let mut html = String::new();
    pulldown_cmark::html::push_html(&mut html, mapped);
    PreEscaped(html)
}

/// A section with its title, and where the next one is. None if there is no such anchor.
fn section(wanted: &str) -> Option<(String, Markup)> {
    let events = events();
    let headings = headings(&events);
    let heading = headings.iter().find(|heading| heading.anchor == wanted)?;
    let body = events.get(heading.begin..heading.end)?;
    let after_title =
        body.iter().position(|event| matches!(event, Event::End(TagEnd::Heading(_))))? + 1;
    Some((heading.words.clone(), render(&body[after_title..])))
}

/// Whether there is a section with this anchor.
#[cfg(test)]
pub(super) fn has(anchor: &str) -> bool {
    section(anchor).is_some()
}

/// All sections.
pub(super) async fn contents(Extension(viewer): Extension<Viewer>) -> Response {
    let events = events();
    let headings = headings(&events);
    let main = html! {
        p { "What to look at and what to do, as in " code { "docs/OPERATIONS.md" } " of this version." }
        ul {
            @for heading in headings.iter().filter(|heading| heading.level == HeadingLevel::H2) {
                li {
                    a href={ "/runbook/" (heading.anchor) } { (heading.words) }
                    @let below: Vec<_> = headings.iter().filter(|below| {
                        below.level == HeadingLevel::H3 && below.begin > heading.begin && below.begin < heading.end
                    }).collect();
                    @if !below.is_empty() {
                        ul { @for below in below { li { a href={ "/runbook/" (below.anchor) } { (below.words) } } } }
                    }
                }
            }
        }
    };
    layout::page(&viewer, Part::Runbook, "Runbook", main).into_response()
}

/// One section.
pub(super) async fn show(
    Extension(viewer): Extension<Viewer>,
    OfPath(anchor): OfPath<String>,
) -> Answer {
    let Some((title, body)) = section(&anchor) else {
        return Err(Failure::NotFound("The runbook has no such section.".into()));
    };
    let main = html! { (body) p { a href="/runbook" { "All of the runbook" } } };
    Ok(layout::page(&viewer, Part::Runbook, &title, main).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_within_the_runbook_leads_to_a_section() {
        let events = events();
        let mut checked = 0;
        for event in &events {
            if let Event::Start(Tag::Link { dest_url, .. }) = event
                && let Some(anchor) = dest_url.strip_prefix('#')
            {
                assert!(section(anchor).is_some(), "{anchor}");
                checked += 1;
            }
        }
        assert!(checked > 10);
    }

    #[test]
    fn a_section_ends_where_the_next_one_begins_and_links_stay_on_the_page() {
        let (title, body) = section("coordinatordeadletters").expect("a section");
        let body = body.into_string();
        assert_eq!(title, "CoordinatorDeadLetters");
        assert!(body.contains("<strong>Means:</strong>") && !body.contains("CoordinatorSignature"));
        let (_, alerts) = section("where-is-my-delivery").expect("a section");
        let alerts = alerts.into_string();
        assert!(alerts.contains(r#"href="/runbook/coordinatordeadletters""#), "{alerts}");
        assert!(alerts.contains(r#"tabindex="0"><table>"#) && !alerts.contains(".md"), "{alerts}");
        let (_, whole) = section("alerts").expect("a section");
        assert!(whole.into_string().contains("<h3>CoordinatorNoIngest</h3>"));
    }
}
