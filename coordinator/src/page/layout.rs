//! What all pages share: head, navigation, search field, foot.

use maud::{DOCTYPE, Markup, html};

use super::{
    assets::{CSS_ADDRESS, ICON_ADDRESS, JS_ADDRESS},
    security::Viewer,
};

/// Name of the field that holds the token of a form.
pub(super) const FORM_TOKEN: &str = "form_token";

/// The part of the navigation that a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Now,
    Find,
    DeadLetters,
    Runs,
    Runbook,
    None,
}

const PARTS: [(Part, &str, &str); 5] = [
    (Part::Now, "/", "Now"),
    (Part::Find, "/find", "Find"),
    (Part::DeadLetters, "/dead-letters", "Dead letters"),
    (Part::Runs, "/runs", "Runs"),
    (Part::Runbook, "/runbook", "Runbook"),
];

/// A whole page.
pub(super) fn page(viewer: &Viewer, part: Part, title: &str, main: Markup) -> Markup {
    found_page(viewer, part, title, "", main)
}

/// A whole page, with a text in the search field.
pub(super) fn found_page(
    viewer: &Viewer,
    part: Part,
    title: &str,
    sought: &str,
    main: Markup,
) -> Markup {
    let header = html! {
        nav aria-label="Pages" {
            ul {
                @for (one, address, name) in PARTS {
                    li { a href=(address) aria-current=[(one == part).then_some("page")] { (name) } }
                }
            }
        }
        form action="/find" role="search" {
            input type="search" name="q" value=(sought) aria-label="Find a delivery, trace, issue or login"
                placeholder="delivery id, owner/repo#7, login" maxlength="300";
            button { "Find" }
        }
        @if viewer.logged_in {
            form.out method="post" action="/logout" {
                (form_token(viewer))
                button.plain { "Log out" }
            }
        }
    };
    document(title, header, main)
}

/// A page for somebody who is not let in, or a failure.
pub(super) fn bare(title: &str, main: Markup) -> Markup {
    document(title, html! {}, main)
}

fn document(title: &str, header: Markup, main: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · Coordinator" }
                link rel="stylesheet" href=(*CSS_ADDRESS);
                link rel="icon" type="image/svg+xml" href=(*ICON_ADDRESS);
                script src=(*JS_ADDRESS) defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header { div { a.brand href="/" { "Coordinator" } (header) } }
                main id="main" tabindex="-1" { h1 { (title) } (main) }
                footer {
                    "Coordinator " (env!("CARGO_PKG_VERSION")) ". Times are UTC. "
                    a href="/health" { "Health" } " · " a href="/metrics" { "Metrics" }
                }
            }
        }
    }
}

/// The hidden field that shows that a form comes from a page of ours.
pub(super) fn form_token(viewer: &Viewer) -> Markup {
    html! { input type="hidden" name=(FORM_TOKEN) value=(viewer.form_token); }
}

/// A table that scrolls by itself where it is too wide. A head that begins with `#` stands above numbers.
pub(super) fn table(caption: &str, heads: &[&str], rows: Markup) -> Markup {
    html! {
        div.scroll role="region" aria-label=(caption) tabindex="0" {
            table {
                caption { (caption) }
                thead { tr { @for head in heads {
                    @match head.strip_prefix('#') {
                        Some(head) => th.number scope="col" { (head) },
                        None => th scope="col" { (head) },
                    }
                } } }
                tbody { (rows) }
            }
        }
    }
}

/// Where a page says that it was cut short, and offers more patience.
pub(super) fn notes(notes: &[String], again: Option<&str>) -> Markup {
    html! {
        @if !notes.is_empty() {
            div.note.warn role="note" {
                @for note in notes { p { (note) } }
                @if let Some(again) = again { p { a href=(again) { "Look again, with more patience" } } }
            }
        }
    }
}
