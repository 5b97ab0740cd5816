//! Texts from outside, bounded and with what a reader could not see made visible. maud escapes what
//! HTML would act on.

use contract::timestamp::Timestamp;
use maud::{Markup, html};
use service::{peers::Instance, printable};

/// Longest title that is shown, in characters.
pub(super) const TITLE: usize = 120;
/// Longest login or name that is shown, in characters.
pub(super) const NAME: usize = 60;
/// Longest error that is shown, in characters.
pub(super) const ERROR: usize = 400;

/// A text of one line, cut to `most` characters.
pub(super) fn line(text: &str, most: usize) -> String {
    let shown = printable::line(text);
    match shown.char_indices().nth(most) {
        None => shown.into_owned(),
        Some((end, _)) => format!("{}…", &shown[..end]),
    }
}

/// A text of several lines, cut to `most` bytes.
pub(super) fn lines(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    let cut = &text[..end.unwrap_or_default()];
    let shown = printable::lines(cut).into_owned();
    if cut.len() < text.len() {
        format!("{shown}\n… ({} bytes in all)", text.len())
    } else {
        shown
    }
}

/// Some logins, with commas between.
pub(super) fn people<'a>(logins: impl IntoIterator<Item = &'a String>) -> String {
    let mut logins = logins.into_iter();
    let shown: Vec<_> = logins.by_ref().take(20).map(|login| line(login, NAME)).collect();
    match (logins.count(), shown.is_empty()) {
        (_, true) => "nobody".into(),
        (0, _) => shown.join(", "),
        (more, _) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A process, by its machine and its id there.
pub(super) fn process(instance: &Instance) -> String {
    format!("{} ({})", line(&instance.host, NAME), instance.pid)
}

/// An instant, in UTC and to the millisecond.
pub(super) fn time(time: Timestamp) -> Markup {
    let exact = Timestamp::from_unix_micros(time.unix_micros() / 1_000 * 1_000).to_string();
    let mut shown = exact.replace('T', " ").replace('Z', "");
    // Times below each other are of one width. Gitea's have no part of a second.
    if let Some((_, fraction)) = shown.split_once('.') {
        shown.push_str(&"0".repeat(3_usize.saturating_sub(fraction.len())));
    }
    html! { time datetime=(exact) { (shown) } }
}

/// A time span in the unit that people would use.
pub(super) fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match seconds {
        _ if seconds < 0.000_999 => format!("{:.0} µs", seconds * 1e6),
        _ if seconds < 0.999 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 120.0 => format!("{seconds:.1} s"),
        _ if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.1} h", seconds / 3_600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

/// How long ago an instant was.
pub(super) fn ago(time: Timestamp) -> String {
    let passed = Timestamp::now().unix_micros() - time.unix_micros();
    format!("{} ago", span(passed as f64 / 1e6))
}

/// A number with its thousands apart.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push('\u{202f}');
        }
        shown.push(digit);
    }
    shown
}

/// A number of bytes in the unit that people would use.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1_000.0, 0);
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 event`, `2 events`.
pub(super) fn count(number_of: u64, one: &str, more: &str) -> String {
    format!("{} {}", number(number_of), if number_of == 1 { one } else { more })
}

/// How often something was tried, as a header says it.
pub(super) fn attempts(header: &str) -> String {
    match header.parse() {
        Ok(attempts) => count(attempts, "attempt", "attempts"),
        Err(_) => "an unknown number of attempts".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_could_not_see_is_visible_and_all_is_bounded() {
        assert_eq!(line("a\u{202e}b\nc", 100), "a\\u{202e}b\\nc");
        assert_eq!(line("漢字漢字", 2), "漢字…");
        assert_eq!(lines("a\nb", 10), "a\nb");
        assert_eq!(lines("é\u{7f}éé", 4), "é\\u{7f}\n… (7 bytes in all)");
        let logins: Vec<String> = (0..22).map(|n| format!("u{n}")).collect();
        assert!(people(&logins).ends_with("u19 and 2 more"));
        assert_eq!(people(&[]), "nobody");
    }

    #[test]
    fn times_are_of_one_width() {
        for (micros, shown) in [
            (1_000_000, ">1970-01-01 00:00:01<"),
            (1_410_999, ">1970-01-01 00:00:01.410<"),
            (1_007_000, ">1970-01-01 00:00:01.007<"),
        ] {
            let markup = time(Timestamp::from_unix_micros(micros)).into_string();
            assert!(markup.contains(shown), "{markup}");
        }
    }

    #[test]
    fn numbers_are_as_people_write_them() {
        for (seconds, shown) in [
            (0.000_25, "250 µs"),
            (0.25, "250.0 ms"),
            (2.5, "2.5 s"),
            (600.0, "10 min"),
            (-1.0, "0 µs"),
            (86_400.0, "24.0 h"),
        ] {
            assert_eq!(span(seconds), shown);
        }
        assert_eq!(number(1_234_567).replace('\u{202f}', " "), "1 234 567");
        assert_eq!((bytes(999), bytes(999_900)), ("999 B".into(), "999.9 kB".into()));
        assert_eq!((bytes(1_000_000), bytes(2 << 30)), ("1.0 MB".into(), "2.1 GB".into()));
        assert_eq!(
            (count(1, "event", "events"), count(2, "event", "events")),
            ("1 event".into(), "2 events".into())
        );
        assert_eq!((attempts("1").as_str(), attempts("3").as_str()), ("1 attempt", "3 attempts"));
        assert!(attempts("").starts_with("an unknown"));
    }
}
