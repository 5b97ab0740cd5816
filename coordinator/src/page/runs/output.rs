//! The output of a run on its page.

use maud::{Markup, html};
use service::{peers::RunDetail, printable};

use super::super::text;

/// Bytes that are shown, of the end.
const MOST: usize = 64 * 1024;

/// Whether a process runs it that has not answered. What the entry keeps is of the attempt before.
pub(super) fn is_elsewhere(run: &RunDetail) -> bool {
    !run.is_live && matches!(&*run.summary.phase, "running" | "stopping")
}

/// The end of the output, with what a reader could not see made visible.
pub(super) fn shown(run: &RunDetail) -> Markup {
    let output = &run.output;
    let least = output.len().saturating_sub(MOST);
    let start = (least..).find(|at| output.is_char_boundary(*at)).unwrap_or(least);
    let is_cut = run.truncated || start > 0;
    html! {
        @if is_elsewhere(run) { p.quiet { "Its process has not answered in time, so it is not known what it has written." } }
        @else if output.is_empty() { p.quiet { "It has written nothing" (if run.is_live { " so far." } else { "." }) } }
        @else {
            p.quiet {
                @if is_cut { "The end of it" } @else { "All of it" }
                @if let Some(written) = run.written { ", of " (text::bytes(written)) }
                @if !run.is_live { ", as it was kept" }
                "."
            }
            pre tabindex="0" aria-label="Output" { (printable::lines(&output[start..])) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn html(output: &str, truncated: bool) -> String {
        let run = RunDetail { output: output.into(), truncated, ..RunDetail::default() };
        shown(&run).into_string()
    }

    #[test]
    fn output_of_the_attempt_before_is_not_shown_as_that_of_what_runs() {
        let before = RunDetail { output: "old".into(), ..RunDetail::default() };
        for (phase, is_live, is_shown) in [
            ("running", true, true),
            ("running", false, false),
            ("stopping", false, false),
            ("again", false, true),
            ("done", false, true),
        ] {
            let mut run = RunDetail { is_live, ..before.clone() };
            run.summary.phase = phase.into();
            assert_eq!(shown(&run).into_string().contains("old"), is_shown, "{phase} {is_live}");
        }
    }

    #[test]
    fn output_is_bounded_and_acts_on_nothing() {
        let html_of = html("</pre><script>\u{1b}]0;x\u{7}\u{202e}\r\nnext", false);
        assert!(html_of.contains("&lt;/pre&gt;&lt;script&gt;\\u{1b}]0;x"), "{html_of}");
        assert!(
            html_of.contains("\\u{202e}\\r\nnext") && html_of.contains("All of it"),
            "{html_of}"
        );
        let long = html(&format!("first{}last", "é".repeat(MOST)), false);
        assert!(!long.contains("first") && long.contains("last") && long.contains("The end of it"));
        assert!(long.len() < MOST + 1_000, "{}", long.len());
        assert!(html("x", true).contains("The end of it"));
        assert!(html("", false).contains("nothing."));
    }
}
