//! A small chart of a measure over the last hour, as SVG with its values in words.

use std::fmt::Write;

use maud::{Markup, html};

/// Width of a chart in its own units.
const WIDTH: usize = 300;
/// Height of a chart in its own units.
const HEIGHT: usize = 40;
/// Bars of a chart, one a minute.
const BARS: usize = 60;

/// Values of `every_secs` each, the newest last, put together to one a minute: added up, or the
/// highest.
pub(super) fn by_minute(points: &[f64], every_secs: u32, add: bool) -> Vec<f64> {
    let in_a_minute = (60 / every_secs.max(1)).max(1) as usize;
    let together = |part: &[f64]| {
        let good = part.iter().copied().filter(|value| value.is_finite());
        if add { good.sum() } else { good.fold(0.0, f64::max) }
    };
    let mut minutes: Vec<f64> = points.rchunks(in_a_minute).map(together).take(BARS).collect();
    minutes.reverse();
    minutes
}

/// The chart of one value a minute, the newest last. `label` says in words what it shows.
pub(super) fn chart(minutes: &[f64], label: &str) -> Markup {
    let width = WIDTH / BARS;
    let highest = minutes.iter().copied().fold(0.0, f64::max);
    let mut path = String::new();
    for (index, value) in minutes.iter().enumerate().filter(|(_, value)| **value > 0.0) {
        // What is not nothing can be seen.
        let height = ((value / highest) * (HEIGHT as f64 - 1.0)).round().max(1.0);
        let x = WIDTH - (minutes.len() - index) * width;
        // Writing to a string never fails.
        let _ = write!(path, "M{x} {HEIGHT}v-{height}h{}v{height}z", width - 1);
    }
    html! {
        svg.chart viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
            aria-label=(label) {
            path d=(path) {}
            line x1="0" y1=(HEIGHT) x2=(WIDTH) y2=(HEIGHT) {}
        }
    }
}

/// A bar that is `done` of `all` long.
pub(super) fn progress(done: u64, all: u64) -> Markup {
    let share = (done.min(all) * 1_000).checked_div(all).unwrap_or(1_000);
    html! {
        svg.progress viewBox="0 0 1000 10" preserveAspectRatio="none" role="img"
            aria-label={ (done) " of " (all) } {
            rect.track width="1000" height="10" {}
            rect width=(share) height="10" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_minute_is_whole_and_values_are_put_together() {
        let points = [1.0, 2.0, 3.0, 4.0, f64::NAN, 6.0, 7.0];
        assert_eq!(by_minute(&points, 20, true), [1.0, 9.0, 13.0]);
        assert_eq!(by_minute(&points, 20, false), [1.0, 4.0, 7.0]);
        assert_eq!(by_minute(&[], 10, true), [0.0; 0]);
        assert_eq!(by_minute(&[1.0; 720], 10, true).len(), BARS);
        assert_eq!(by_minute(&[1.0, 2.0], 0, true), [3.0]);
    }

    #[test]
    fn a_chart_has_its_newest_bar_at_the_right_and_says_what_it_shows() {
        let svg = chart(&[0.0, 0.001, 10.0], "ten in the last minute").into_string();
        assert!(svg.contains(r#"aria-label="ten in the last minute""#), "{svg}");
        assert!(svg.contains("M290 40v-1h4v1zM295 40v-39h4v39z"), "{svg}");
        assert!(chart(&[], "nothing").into_string().contains(r#"d="""#));
        assert!(progress(1, 4).into_string().contains(r#"<rect width="250""#));
        assert!(progress(0, 0).into_string().contains(r#"<rect width="1000""#));
    }
}
