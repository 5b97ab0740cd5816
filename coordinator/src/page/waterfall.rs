//! The spans of a trace as a waterfall: each below its parent, with a bar from its start to its end.

use std::collections::{HashMap, HashSet};

use maud::{Markup, html};
use service::telemetry::span_store::StoredSpan;

use super::text;

/// Spans that are shown unless all are asked for.
const MOST: usize = 40;
/// Deepest level that is set in.
const DEEPEST: usize = 8;

/// A line of the waterfall.
#[derive(Clone, Debug, PartialEq)]
struct Line<'a> {
    span: &'a StoredSpan,
    depth: usize,
    /// Its parent was not found: it is kept elsewhere, or nowhere any more.
    is_orphan: bool,
}

/// The spans in the order in which they are shown: parents before children, and by time.
fn lines(spans: &[StoredSpan]) -> Vec<Line<'_>> {
    let mut seen = HashSet::new();
    let mut spans: Vec<_> = spans.iter().filter(|span| seen.insert(&*span.span_id)).collect();
    spans.sort_by_key(|span| (span.started_at, span.ended_at));
    let mut children: HashMap<&str, Vec<&StoredSpan>> = HashMap::new();
    let (mut roots, mut lines) = (Vec::new(), Vec::new());
    for span in &spans {
        match span.parent_id.as_deref() {
            Some(parent) if seen.contains(parent) => {
                children.entry(parent).or_default().push(span);
            }
            parent => roots.push((*span, 0, parent.is_some())),
        }
    }
    let mut left: Vec<_> = roots.into_iter().rev().collect();
    // Spans whose parents make a ring are under no root, and are not shown.
    while let Some((span, depth, is_orphan)) = left.pop() {
        lines.push(Line { span, depth, is_orphan });
        let below = children.remove(&*span.span_id).unwrap_or_default();
        left.extend(below.into_iter().rev().map(|child| (child, depth + 1, false)));
    }
    lines
}

/// The waterfall. `all` is the address that shows all spans, where there are many.
pub(super) fn waterfall(spans: &[StoredSpan], all: Option<&str>) -> Markup {
    let lines = lines(spans);
    let begin = lines.iter().map(|line| line.span.started_at).min().unwrap_or(0);
    let end = lines.iter().map(|line| line.span.ended_at).max().unwrap_or(0);
    let length = end.saturating_sub(begin).max(1);
    let shown = if all.is_some() { MOST } else { usize::MAX };
    let left_out = lines.len().saturating_sub(shown);
    let seconds = |nanos: u64| text::span(nanos as f64 / 1e9);
    let caption =
        format!("{} in {}", text::count(lines.len() as u64, "span", "spans"), seconds(length));
    html! {
        @if lines.is_empty() {
            p.quiet { "No process keeps spans of it any more, or none has ended yet." }
        } @else {
            div.scroll role="region" aria-label="Waterfall of the spans" tabindex="0" {
                table {
                    caption { (caption) }
                    thead { tr {
                        th scope="col" { "Span" } th scope="col" { "Process" } th.number scope="col" { "Starts at" }
                        th.number scope="col" { "Takes" } th scope="col" { "When" }
                    } }
                    tbody {
                        @for line in lines.iter().take(shown) {
                            (row(line, begin, length))
                        }
                    }
                }
            }
            @if let (Some(all), true) = (all, left_out > 0) {
                p { a href=(all) { "Show " (left_out) " more" } }
            }
        }
    }
}

fn row(line: &Line<'_>, begin: u64, length: u64) -> Markup {
    let Line { span, depth, is_orphan } = line;
    let starts = span.started_at.saturating_sub(begin);
    let takes = span.ended_at.saturating_sub(span.started_at);
    // In thousandths of the whole. A bar is wide enough to be seen.
    let share = |nanos: u64| (u128::from(nanos) * 1_000 / u128::from(length)) as u64;
    let (x, width) = (share(starts).min(994), share(takes).max(6));
    let failed = span.error.is_some();
    let depth_class = (*depth > 0).then(|| format!("d{}", depth.min(&DEEPEST)));
    let seconds = |nanos: u64| text::span(nanos as f64 / 1e9);
    html! {
        tr {
            td.words class=[depth_class] {
                (text::line(&span.name, text::TITLE))
                @if *is_orphan { " " span.quiet { "(its parent is not kept)" } }
                @if let Some(error) = &span.error {
                    " " span.bad { "failed" } " " (text::line(error, text::TITLE))
                }
            }
            td { (text::line(&span.service, text::NAME)) }
            td.number { "+" (seconds(starts)) }
            td.number { (seconds(takes)) }
            td {
                svg.span viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true" {
                    rect class=[failed.then_some("failed")] x=(x) width=(width.min(1_000 - x)) height="10" {}
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn span(id: &str, parent: Option<&str>, from: u64, to: u64) -> StoredSpan {
        StoredSpan {
            trace_id: "b60f8ed36a1a4e58b31e0b00968f94cb".into(),
            span_id: id.into(),
            parent_id: parent.map(str::to_owned),
            name: format!("name of {id}"),
            kind: "internal".into(),
            started_at: from,
            ended_at: to,
            error: None,
            service: "worker".into(),
            attributes: Vec::new(),
            links: Vec::new(),
        }
    }

    fn order(spans: &[StoredSpan]) -> Vec<(&str, usize, bool)> {
        lines(spans).iter().map(|l| (l.span.span_id.as_str(), l.depth, l.is_orphan)).collect()
    }

    #[test]
    fn children_are_below_their_parent_by_time_and_each_span_stands_once() {
        let spans = [
            span("c", Some("b"), 30, 40),
            span("a", None, 10, 100),
            span("d", Some("a"), 50, 60),
            span("b", Some("a"), 20, 45),
            span("b", Some("a"), 20, 45),
            span("e", Some("elsewhere"), 70, 80),
        ];
        assert_eq!(
            order(&spans),
            [("a", 0, false), ("b", 1, false), ("c", 2, false), ("d", 1, false), ("e", 0, true)]
        );
    }

    #[test]
    fn a_ring_and_a_span_that_is_its_own_parent_end() {
        let spans =
            [span("a", Some("b"), 1, 2), span("b", Some("a"), 1, 2), span("c", Some("c"), 1, 2)];
        assert_eq!(order(&spans), []);
    }

    #[test]
    fn bars_are_of_attributes_and_within_the_chart_whatever_the_times_are() {
        let mut spans = vec![span("a", None, 100, 200), span("b", Some("a"), 200, 150)];
        spans[1].error = Some("<script>\u{202e}".into());
        let html = waterfall(&spans, None).into_string();
        assert!(html.contains(r#"<rect x="0" width="1000" height="10">"#), "{html}");
        assert!(html.contains(r#"<rect class="failed" x="994" width="6" height="10">"#), "{html}");
        assert!(html.contains("&lt;script&gt;\\u{202e}") && !html.contains("style="), "{html}");
        let many: Vec<_> = (0..60).map(|n| span(&n.to_string(), None, n, n + 1)).collect();
        let html = waterfall(&many, Some("/all")).into_string();
        assert!(html.contains(r#"<a href="/all">Show 20 more</a>"#) && html.len() < 24_000);
    }
}
