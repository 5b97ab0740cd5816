//! What all processes did in the last hour, put together.

use maud::{Markup, html};
use service::peers::Series;

use super::super::{
    chart::{by_minute, chart},
    text,
};

/// How values of several processes or moments make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Counted: added up.
    Count,
    /// Measured by each for itself: added up over processes, the highest of a minute.
    Level,
    /// Measured by each for all: the highest.
    Shared,
}

/// A measure that is shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measure {
    pub(super) name: String,
    label: String,
    kind: Kind,
    /// One value a minute, the newest last.
    pub(super) minutes: Vec<f64>,
    /// What came in the last minute, or is now.
    pub(super) last: f64,
}

/// Measures in the order of a delivery's way. What is told elsewhere on the page has no tile.
const KNOWN: [(&str, &str, Kind); 16] = [
    ("accepted", "Deliveries accepted", Kind::Count),
    ("ignored", "Deliveries ignored", Kind::Count),
    ("refused", "Deliveries refused", Kind::Count),
    ("journal_depth", "Unpublished in the journal", Kind::Level),
    ("published", "Events published", Kind::Count),
    ("publish_failures", "Publishes that failed", Kind::Count),
    ("lag", "Events that wait", Kind::Shared),
    ("handled", "Events handled", Kind::Count),
    ("changed", "Changes told", Kind::Count),
    ("redelivered", "Events delivered again", Kind::Count),
    ("retries", "Attempts that failed at the broker", Kind::Count),
    ("dead_lettered", "Events given up", Kind::Count),
    ("in_doubt", "Left in doubt", Kind::Count),
    ("questions", "Issues that Gitea is to be asked about", Kind::Shared),
    (SYNC_AGE, "Since the last sweep", Kind::Shared),
    ("journal_used_bytes", "Size of the journal", Kind::Level),
];
/// Seconds since the last complete sweep, by the worker that asks Gitea.
pub(super) const SYNC_AGE: &str = "sync_age_seconds";
const WITHOUT_TILE: [&str; 2] = [SYNC_AGE, "journal_used_bytes"];

/// Puts the series of all processes together, by name.
pub(super) fn put_together(series: &[Series]) -> Vec<Measure> {
    let known = |name: &str| KNOWN.iter().position(|(known, _, _)| *known == name);
    let mut names: Vec<&str> = Vec::new();
    for one in series {
        if !names.contains(&one.name.as_str()) {
            names.push(&one.name);
        }
    }
    names.sort_by_key(|name| known(name).unwrap_or(KNOWN.len()));
    let of_name = |name: &str| {
        let (label, kind) = match known(name).and_then(|index| KNOWN.get(index)) {
            Some((_, label, kind)) => ((*label).to_owned(), *kind),
            None => (text::line(name, text::NAME), Kind::Count),
        };
        let of_each = series.iter().filter(|one| one.name == name);
        let mut minutes: Vec<f64> = Vec::new();
        let mut last = 0.0_f64;
        for one in of_each {
            let own = by_minute(&one.points, one.every_secs, kind == Kind::Count);
            if own.len() > minutes.len() {
                // The newest ones stand at the end.
                minutes.splice(0..0, std::iter::repeat_n(0.0, own.len() - minutes.len()));
            }
            let missing = minutes.len() - own.len();
            for (all, own) in minutes.iter_mut().skip(missing).zip(own) {
                *all = if kind == Kind::Shared { all.max(own) } else { *all + own };
            }
            let newest =
                one.points.last().copied().filter(|value| value.is_finite()).unwrap_or(0.0);
            last = match kind {
                Kind::Count => 0.0,
                Kind::Level => last + newest,
                Kind::Shared => last.max(newest),
            };
        }
        if kind == Kind::Count {
            last = minutes.last().copied().unwrap_or(0.0);
        }
        Measure { name: name.to_owned(), label, kind, minutes, last }
    };
    names.into_iter().map(of_name).collect()
}

impl Measure {
    /// Whether it is shown as a tile.
    pub(super) fn has_tile(&self) -> bool {
        !WITHOUT_TILE.contains(&self.name.as_str())
    }

    /// A heading, the value, and a chart.
    pub(super) fn tile(&self) -> Markup {
        let hour: f64 = self.minutes.iter().sum();
        let highest = self.minutes.iter().copied().fold(0.0, f64::max);
        let number = |value: f64| text::number(value.round().max(0.0) as u64);
        let (value, rest) = match self.kind {
            Kind::Count => (
                format!("{} in the last minute", number(self.last)),
                format!("{} in the last hour, {} a minute at most", number(hour), number(highest)),
            ),
            Kind::Level | Kind::Shared => (
                format!("{} now", number(self.last)),
                format!("{} at most in the last hour", number(highest)),
            ),
        };
        html! {
            h3 { (self.label) }
            p.value { (value) }
            p.quiet { (rest) }
            (chart(&self.minutes, &format!("{}: {value}, {rest}", self.label)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, points: &[f64]) -> Series {
        Series { name: name.into(), every_secs: 30, points: points.to_vec() }
    }

    #[test]
    fn processes_are_put_together_by_what_a_measure_is() {
        let all = [
            series("new", &[1.0]),
            series("handled", &[1.0, 2.0, 3.0, 4.0]),
            series("lag", &[5.0, 9.0]),
            series("handled", &[10.0, 20.0]),
            series("lag", &[7.0, 8.0]),
            series("journal_depth", &[1.0, 2.0]),
            series("journal_depth", &[3.0, 4.0]),
        ];
        let found = put_together(&all);
        let of = |measure: &Measure| (measure.name.clone(), measure.minutes.clone(), measure.last);
        assert_eq!(
            found.iter().map(of).collect::<Vec<_>>(),
            [
                ("journal_depth".into(), vec![6.0], 6.0),
                ("lag".into(), vec![9.0], 9.0),
                ("handled".into(), vec![3.0, 37.0], 37.0),
                ("new".into(), vec![1.0], 1.0),
            ]
        );
        let tile = found[2].tile().into_string();
        assert!(tile.contains("37 in the last minute") && tile.contains("40 in the last hour"));
        assert!(found[1].tile().into_string().contains("9 now"));
    }
}
