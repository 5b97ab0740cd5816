//! Log lines for people: one line an event, no wider than a terminal.
//!
//! A line says when, how bad, which issue, what happened with the facts that matter, and which
//! delivery. Lines for machines hold all fields, and so do these at `debug`.

use std::{fmt, io::Write};

use contract::timestamp::Timestamp;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, fmt::MakeWriter, layer::Context, registry::LookupSpan};

use crate::{
    printable,
    terminal::{Color, Colors, WIDTH, cut, issue_ref, short_id, width},
};

const MESSAGE: &str = "message";
const ERROR: &str = "error";
const ISSUE: &str = "gitea.issue.ref";
const DELIVERY: &str = "gitea.delivery.id";

/// Fields whose value says enough without the name.
const BARE: [&str; 4] = ["gitea.action", "outcome", "verdict", "changes"];

/// Fields that a line holds elsewhere, or that lead nowhere without a tool.
const DETAILS: [&str; 5] =
    ["trace_id", "gitea.event", "gitea.repository", "http.response.status_code", "seq"];

/// Writes each event as a line for people.
pub(super) struct LineLayer<W> {
    writer: W,
    style: Style,
}

/// How lines look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) colors: Colors,
    /// Lines hold all fields, and nothing is cut.
    pub(super) detailed: bool,
}

impl<W> LineLayer<W> {
    pub(super) fn new(writer: W, style: Style) -> Self {
        Self { writer, style }
    }
}

impl<S, W> Layer<S> for LineLayer<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut around = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<Fields>() {
                fields.0.iter().for_each(|(name, value)| around.set(name, value.clone()));
            }
        }
        let mut own = Fields::default();
        event.record(&mut own);
        let (now, level) = (Timestamp::now(), *event.metadata().level());
        let line = line(now, level, &own, &around, self.style);
        // The log is where an error would be told.
        let _ = self.writer.make_writer().write_all(line.as_bytes());
    }
}

/// Fields with their values as text, harmless for a terminal.
#[derive(Debug, Default)]
struct Fields(Vec<(&'static str, String)>);

impl Fields {
    fn set(&mut self, name: &'static str, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), printable::line(value).into_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), printable::line(&format!("{value:?}")).into_owned());
    }
}

/// The line of an event with its `own` fields and those of the spans `around` it.
fn line(now: Timestamp, level: Level, own: &Fields, around: &Fields, style: Style) -> String {
    let get = |name| own.get(name).or_else(|| around.get(name));
    let time = clock(now);
    let issue = get(ISSUE).unwrap_or_default();
    let issue = if style.detailed { issue.into() } else { issue_ref(issue) };
    let delivery = get(DELIVERY).map(short_id).unwrap_or_default();
    let mut text = own.get(MESSAGE).unwrap_or_default().to_owned();
    let mut error = own.get(ERROR).unwrap_or_default().to_owned();
    let mut details = String::new();
    if style.detailed {
        details = all(own, around);
    } else {
        text.push_str(&facts(&text, own));
        let gap = |text: &str| if text.is_empty() { 0 } else { width(text) + 1 };
        let taken = width(&time) + 1 + 5 + 1 + gap(&issue) + gap(delivery);
        let room = WIDTH.saturating_sub(taken);
        (text, error) = fitted(&text, &error, room);
    }
    let colors = style.colors;
    let level_color = match level {
        Level::ERROR => Color::Red,
        Level::WARN => Color::Yellow,
        Level::INFO => Color::Green,
        _ => Color::Blue,
    };
    let error = if error.is_empty() { error } else { format!(": {error}") };
    let parts = [
        colors.paint(Color::Dim, &time),
        colors.paint(level_color, &format!("{:5}", level.as_str())).into_owned().into(),
        colors.paint(Color::Cyan, &issue),
        format!("{text}{}", colors.paint(level_color, &error)).into(),
        colors.paint(Color::Dim, delivery),
        colors.paint(Color::Dim, &details),
    ];
    let parts: Vec<_> = parts.iter().filter(|part| !part.is_empty()).map(|part| &**part).collect();
    parts.join(" ") + "\n"
}

/// `text` and `error` cut so that both, with a colon and a space between, fit into `room`. The
/// error keeps half of it.
fn fitted(text: &str, error: &str, room: usize) -> (String, String) {
    if error.is_empty() {
        return (cut(text, room).into_owned(), String::new());
    }
    let room = room.saturating_sub(2);
    let (for_text, for_error) = (width(text), width(error));
    let for_error = for_error.min(room.saturating_sub(for_text).max(room / 2));
    let text = cut(text, room.saturating_sub(for_error)).into_owned();
    (text, cut(error, for_error).into_owned())
}

/// The facts of an event that matter to people.
fn facts(message: &str, own: &Fields) -> String {
    // A message that says it already, such as "delivery accepted", needs no outcome.
    let said = |value: &str| value.is_empty() || message.ends_with(value);
    let bare: Vec<_> =
        BARE.iter().filter_map(|name| own.get(name)).filter(|value| !said(value)).collect();
    let mut text = bare.join(", ");
    if !text.is_empty() {
        text.insert_str(0, ": ");
    }
    for (name, value) in &own.0 {
        let is_elsewhere = [MESSAGE, ERROR, ISSUE, DELIVERY].contains(name);
        if is_elsewhere || BARE.contains(name) || DETAILS.contains(name) || value.is_empty() {
            continue;
        }
        match (*name, value.as_str()) {
            (_, "false") | ("attempt", "1") => {}
            (name, "true") => text.push_str(&format!(" ({})", name.replace('_', " "))),
            (name, value) => text.push_str(&pair(name, value)),
        }
    }
    text
}

/// All fields but those that the line shows in full.
fn all(own: &Fields, around: &Fields) -> String {
    let inherited = around.0.iter().filter(|(name, _)| own.get(name).is_none());
    let shown = [MESSAGE, ERROR, ISSUE];
    let fields = own.0.iter().chain(inherited).filter(|(name, _)| !shown.contains(name));
    let text: String = fields.map(|(name, value)| pair(name, value)).collect();
    text.trim_start().to_owned()
}

fn pair(name: &str, value: &str) -> String {
    if value.is_empty() || value.contains(' ') {
        format!(" {name}=\"{value}\"")
    } else {
        format!(" {name}={value}")
    }
}

/// The time of the day in UTC, to the millisecond.
fn clock(now: Timestamp) -> String {
    let millis = now.unix_micros().div_euclid(1_000).rem_euclid(24 * 60 * 60 * 1_000);
    let (secs, millis) = (millis / 1_000, millis % 1_000);
    format!("{:02}:{:02}:{:02}.{millis:03}", secs / 3_600, secs / 60 % 60, secs % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::{Registry, layer::SubscriberExt};

    const ID: &str = "b60f8ed3-6a1a-4e58-b31e-0b00968f94cb";

    fn style(detailed: bool) -> Style {
        Style { colors: Colors::NONE, detailed }
    }

    /// The line of what `log` logs, without its time.
    fn logged(style: Style, log: impl FnOnce()) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = {
            let written = Arc::clone(&written);
            move || Written(Arc::clone(&written))
        };
        let subscriber = Registry::default().with(LineLayer::new(writer, style));
        tracing::subscriber::with_default(subscriber, log);
        let written = written.lock().expect("no panic").clone();
        let text = String::from_utf8(written).expect("UTF-8");
        let (line, rest) = text.split_once('\n').expect("a line");
        assert_eq!(rest, "");
        if !style.detailed {
            assert!(width(line) <= WIDTH, "{line}");
        }
        line.split_once(' ').expect("a time").1.to_owned()
    }

    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn in_a_span(log: impl FnOnce()) {
        let span = tracing::info_span!(
            "process",
            otel.kind = "consumer",
            gitea.delivery.id = ID,
            trace_id = "b60f8ed36a1a4e58b31e0b00968f94cb",
            gitea.issue.ref = tracing::field::Empty,
        );
        span.record(ISSUE, "acme/widgets#7");
        span.in_scope(log);
    }

    #[test]
    fn a_line_says_which_issue_what_happened_and_which_delivery() {
        let accepted = logged(style(false), || {
            tracing::info!(
                gitea.delivery.id = %ID,
                trace_id = "b60f8ed36a1a4e58b31e0b00968f94cb",
                gitea.event = "issues",
                gitea.action = "assigned",
                gitea.repository = "acme/widgets",
                gitea.issue.ref = "acme/widgets#7",
                outcome = "accepted",
                http.response.status_code = 200,
                "delivery accepted"
            );
        });
        assert_eq!(accepted, "INFO  acme/widgets#7 delivery accepted: assigned b60f8ed3");
        let handled = |changes: &str, in_doubt, attempt| {
            logged(style(false), || {
                in_a_span(|| {
                    tracing::info!(verdict = "changed", changes, in_doubt, attempt, "handled")
                });
            })
        };
        assert_eq!(
            handled("assigned +bot", false, 1),
            "INFO  acme/widgets#7 handled: changed, assigned +bot b60f8ed3"
        );
        assert_eq!(
            handled("closed", true, 3),
            "INFO  acme/widgets#7 handled: changed, closed (in doubt) attempt=3 b60f8ed3"
        );
        let connected = logged(style(false), || tracing::info!(role = "ingest", "connected"));
        assert_eq!(connected, "INFO  connected role=ingest");
    }

    #[test]
    fn a_long_line_is_cut_and_its_error_is_kept() {
        let long = "x".repeat(300);
        let line = logged(style(false), || {
            in_a_span(|| tracing::warn!(error = long, found = long, "the broker fails"));
        });
        assert!(line.starts_with("WARN  acme/widgets#7 the broker fails found=xx"), "{line}");
        assert!(line.contains("x…: xxxx") && line.ends_with("x… b60f8ed3"), "{line}");
        let line = logged(style(false), || {
            in_a_span(|| tracing::warn!(error = "timed out", found = long, "the broker fails"));
        });
        assert!(line.ends_with("x…: timed out b60f8ed3"), "{line}");
        let long = format!("{}/{}#7", "o".repeat(40), "r".repeat(200));
        let line = logged(style(false), || {
            tracing::error!(gitea.issue.ref = long, gitea.delivery.id = ID, error = "e", "broken");
        });
        assert!(line.contains("r#7 broken: e b60f8ed3"), "{line}");
    }

    #[test]
    fn at_debug_a_line_holds_everything() {
        let long = "x".repeat(300);
        let line = logged(style(true), || {
            in_a_span(|| tracing::warn!(error = long, attempt = 1, "the broker fails"));
        });
        for part in [
            "WARN  acme/widgets#7 the broker fails: xxx",
            &format!(": {long} b60f8ed3 "),
            " attempt=1",
            &format!(" gitea.delivery.id={ID}"),
            " trace_id=b60f8ed36a1a4e58b31e0b00968f94cb",
            " otel.kind=consumer",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains('…'), "{line}");
    }

    #[test]
    fn what_comes_from_outside_is_harmless_and_only_we_color() {
        let colored = Style { colors: Colors::new(true, None), detailed: false };
        let log = || tracing::error!(error = "\u{1b}[2J\u{202e}\nx", "\u{9b}31m\r");
        let line = logged(style(false), log);
        assert_eq!(line, r"ERROR \u{9b}31m\r: \u{1b}[2J\u{202e}\nx");
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = {
            let written = Arc::clone(&written);
            move || Written(Arc::clone(&written))
        };
        let subscriber = Registry::default().with(LineLayer::new(writer, colored));
        tracing::subscriber::with_default(subscriber, log);
        let written = String::from_utf8(written.lock().expect("no panic").clone()).expect("UTF-8");
        assert!(written.contains("\u{1b}[31mERROR\u{1b}[0m \\u{9b}31m\\r"), "{written:?}");
        assert!(!written.contains("\u{1b}[2J"), "{written:?}");
    }

    #[test]
    fn the_clock_is_that_of_utc() {
        let at = |text| clock(Timestamp::parse(text).expect(text));
        assert_eq!(at("2026-11-24T01:45:09.0305+02:00"), "23:45:09.030");
        assert_eq!(at("1970-01-01T00:00:00Z"), "00:00:00.000");
    }
}
