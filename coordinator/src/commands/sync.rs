//! `coordinator sync`: compares issues with Gitea at once, and tells what differs.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use contract::{
    issue_state::{KnownIssue, Lifecycle},
    names::EVENTS,
    timestamp::Timestamp,
};
use serde_json::{Value, json};
use service::{
    broker::{repartition::Stored, streams::StreamsArgs},
    settings::Problems,
};
use sync::on_demand::{self, OnDemand, Report, Row, Scope};
use time::OffsetDateTime;

use super::{connect::BrokerArgs, gitea_access::GiteaAccessArgs, output, progress::Progress};
use crate::local::data_dir::Instance;

/// Exit code if something differs.
pub(crate) const EXIT_DIFFERS: u8 = 3;

/// What to compare.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SyncArgs {
    /// Repositories of this owner alone
    #[arg(long, value_name = "LOGIN", conflicts_with_all = ["repo", "issue"])]
    owner: Option<String>,
    /// This repository alone
    #[arg(long, value_name = "OWNER/NAME", conflicts_with = "issue")]
    repo: Option<String>,
    /// This issue alone
    #[arg(long, value_name = "OWNER/NAME#NUMBER")]
    issue: Option<String>,
    /// Issues alone that changed since then: a time (2026-11-23T23:45:00Z) or an age (30m, 12h, 7d)
    #[arg(long, value_name = "TIME", conflicts_with = "issue")]
    since: Option<String>,
    /// Tell nobody what differs
    #[arg(long)]
    dry_run: bool,
    /// Print each difference as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gitea: GiteaAccessArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    streams: StreamsArgs,
}

/// Runs the command. Exit code [`EXIT_DIFFERS`] if something differs.
pub(crate) async fn main(args: &SyncArgs) -> Result<ExitCode> {
    let mut problems = Problems::default();
    let instance = Instance::read(args.broker.data_dir())?;
    let access = args.gitea.settings(instance.as_ref(), &mut problems);
    let mut streams = args.streams.settings(&mut problems);
    let scope = args.scope(&mut problems);
    problems.finish(())?;
    let (broker, session) = args.broker.connect("coordinator-sync").await?;
    let events = session.jetstream.get_stream(EVENTS).await;
    let events = events.context("look up the stream of events; has a Coordinator run yet?")?;
    // As it stands, so that no setting has to be repeated.
    streams.partitions = Stored::of(&events.cached_info().config).partitions;
    let on_demand = OnDemand::new(broker, &access, &streams, args.dry_run)?;
    let mut line = Progress::new();
    let report = on_demand.run(&scope, |progress| show(&mut line, progress)).await;
    drop(line);
    args.print(&report?)
}

impl SyncArgs {
    fn scope(&self, problems: &mut Problems) -> Scope {
        let mut scope = Scope { owner: self.owner.clone(), ..Scope::default() };
        let place = match (&self.repo, &self.issue) {
            (Some(repo), _) => Some((repo.as_str(), None)),
            (None, Some(issue)) => match issue.rsplit_once('#') {
                Some((repo, number)) => Some((repo, Some(number))),
                None => Some((issue.as_str(), Some(""))),
            },
            (None, None) => None,
        };
        if let Some((repo, number)) = place {
            match repo.split_once('/') {
                Some((owner, name)) if !owner.is_empty() && !name.is_empty() => {
                    (scope.owner, scope.repository) = (Some(owner.into()), Some(name.into()));
                }
                _ => problems.add(format!("{repo} is not OWNER/NAME")),
            }
            match number.map(str::parse) {
                Some(Ok(number)) => scope.number = Some(number),
                Some(Err(_)) => problems.add("--issue is not OWNER/NAME#NUMBER"),
                None => {}
            }
        }
        if let Some(since) = &self.since {
            match instant(since, OffsetDateTime::now_utc()) {
                Some(since) => scope.since = Some(since),
                None => problems.add("--since is not a time or an age such as 12h"),
            }
        }
        scope
    }

    fn print(&self, report: &Report) -> Result<ExitCode> {
        if !report.exists {
            bail!("Gitea shows nothing of that name, and nothing is known of it");
        }
        if self.json {
            for row in &report.rows {
                output::json_line(&json_row(row, !self.dry_run))?;
            }
        } else {
            table(&report.rows).iter().try_for_each(|line| output::line(line))?;
            let (differ, compared) = (report.rows.len(), report.compared);
            let told = match (differ, self.dry_run) {
                (0, _) => "none differs".into(),
                (_, true) => format!("{differ} differ, and nobody was told (--dry-run)"),
                (_, false) => format!("{differ} differ, and were told"),
            };
            output::line(&format!("{compared} issues compared; {told}"))?;
            if report.unknown > 0 {
                let unknown = report.unknown;
                output::line(&format!(
                    "{unknown} were never seen and have nobody assigned; a sweep remembers them"
                ))?;
            }
        }
        for (issue, why) in &report.unclear {
            output::error_line(&format!("{issue} is not shown, and not taken for gone: {why}"));
        }
        if !report.unclear.is_empty() {
            bail!("{} issues could not be compared", report.unclear.len());
        }
        let differs = !report.rows.is_empty();
        Ok(if differs { ExitCode::from(EXIT_DIFFERS) } else { ExitCode::SUCCESS })
    }
}

/// Reads a time of RFC 3339, or an age before `now`.
fn instant(text: &str, now: OffsetDateTime) -> Option<OffsetDateTime> {
    if let Ok(time) = Timestamp::parse(text) {
        return OffsetDateTime::from_unix_timestamp(time.unix_micros() / 1_000_000).ok();
    }
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let secs: i64 = number.parse::<u32>().ok().map(i64::from)?.checked_mul(unit)?;
    now.checked_sub(time::Duration::seconds(secs))
}

/// The rows below each other, in columns.
fn table(rows: &[Row]) -> Vec<String> {
    if rows.is_empty() {
        return Vec::new();
    }
    let heads = ["ISSUE", "KNOWN", "GITEA"].map(str::to_owned);
    let cells: Vec<[String; 3]> = std::iter::once(heads)
        .chain(rows.iter().map(|row| {
            let gitea = words(row.state, row.assignees.iter().map(String::as_str));
            [row.issue.clone(), known(row.known.as_ref()), gitea]
        }))
        .collect();
    let width = |column: usize| {
        cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths = [width(0), width(1)];
    let line = |[issue, known, gitea]: &[String; 3]| {
        format!("{issue:<0$}  {known:<1$}  {gitea}", widths[0], widths[1])
    };
    cells.iter().map(line).collect()
}

/// What was known, in words.
fn known(known: Option<&KnownIssue>) -> String {
    match known.filter(|known| !known.delivery_id.is_empty()) {
        Some(known) => {
            let logins = known.assignees.iter().map(|person| person.login.as_str());
            let doubt = if known.in_doubt { ", in doubt" } else { "" };
            format!("{}{doubt}", words(known.state, logins))
        }
        None => "never seen".into(),
    }
}

fn words<'a>(state: Lifecycle, logins: impl Iterator<Item = &'a str>) -> String {
    let logins: Vec<_> = logins.collect();
    let state = match state {
        Lifecycle::Open => "open",
        Lifecycle::Closed => "closed",
        Lifecycle::Deleted => return "gone".into(),
        Lifecycle::Other => "in an unknown state",
    };
    if logins.is_empty() {
        format!("{state}, nobody")
    } else {
        format!("{state}, {}", logins.join(" "))
    }
}

fn json_row(row: &Row, told: bool) -> Value {
    let known = row.known.as_ref().map(|known| {
        let assignees: Vec<_> = known.assignees.iter().map(|person| &person.login).collect();
        json!({ "state": known.state, "assignees": assignees, "in_doubt": known.in_doubt })
    });
    json!({
        "issue": row.issue,
        "known": known,
        "gitea": { "state": row.state, "assignees": row.assignees },
        "event_id": row.event_id,
        "told": told,
    })
}

/// Shows how far it is.
fn show(line: &mut Progress, progress: on_demand::Progress) {
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    match progress {
        on_demand::Progress::Listed(done, Some(all)) => line.bar(count(done), count(all.max(done))),
        on_demand::Progress::Listed(done, None) => line.show(format!("{done} issues compared")),
        on_demand::Progress::Looked(done, all) => line.bar(count(done), count(all)),
        on_demand::Progress::Waits(wait) => line.show(format!(
            "Gitea does not show some issues; a second look follows in {} s",
            wait.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use contract::issue_state::Person;

    use super::*;

    fn args(changed: impl FnOnce(&mut SyncArgs)) -> SyncArgs {
        let mut args = SyncArgs {
            owner: None,
            repo: None,
            issue: None,
            since: None,
            dry_run: false,
            json: false,
            gitea: GiteaAccessArgs::default(),
            broker: BrokerArgs::default(),
            streams: StreamsArgs::default(),
        };
        changed(&mut args);
        args
    }

    #[test]
    fn the_scope_is_read_as_people_write_it() {
        let scope = |changed: fn(&mut SyncArgs)| {
            let mut problems = Problems::default();
            let scope = args(changed).scope(&mut problems);
            problems.finish(scope).map_err(|error| error.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        let found = scope(|args| args.issue = Some("acme/docs.site#7".into())).expect("good");
        assert_eq!(
            (found.owner, found.repository, found.number),
            (some("acme"), some("docs.site"), Some(7))
        );
        let found = scope(|args| args.repo = Some("acme/widgets".into())).expect("good");
        assert_eq!((found.owner, found.repository), (some("acme"), some("widgets")));
        for wrong in [
            (|args| args.repo = Some("acme".into())) as fn(&mut SyncArgs),
            |args| args.issue = Some("acme/widgets".into()),
            |args| args.issue = Some("acme/widgets#x".into()),
            |args| args.since = Some("yesterday".into()),
        ] {
            assert!(scope(wrong).is_err());
        }
    }

    #[test]
    fn a_time_is_an_instant_or_an_age() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).expect("a time");
        for (text, expected) in [
            ("1970-01-01T00:00:07Z", Some(7)),
            ("90s", Some(999_910)),
            ("2h", Some(992_800)),
            ("1d", Some(913_600)),
            ("d", None),
            ("", None),
            ("7", None),
            ("-1d", None),
        ] {
            let found = instant(text, now).map(OffsetDateTime::unix_timestamp);
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn what_differs_is_a_table() {
        let person = |login: &str| Person { id: 1, login: login.into() };
        let known = |in_doubt| KnownIssue {
            assignees: vec![person("bot")],
            delivery_id: "d".into(),
            in_doubt,
            ..KnownIssue::default()
        };
        let row = |issue: &str, known, assignees: &[&str], state| Row {
            issue: issue.into(),
            known,
            assignees: assignees.iter().map(|login| (*login).into()).collect(),
            state,
            event_id: "e".into(),
        };
        let rows = [
            row("acme/widgets#7", Some(known(true)), &["tom", "bot"], Lifecycle::Closed),
            row("a/b#1", None, &[], Lifecycle::Open),
            row("a/b#2", Some(known(false)), &[], Lifecycle::Deleted),
        ];
        assert_eq!(
            table(&rows),
            [
                "ISSUE           KNOWN                GITEA",
                "acme/widgets#7  open, bot, in doubt  closed, tom bot",
                "a/b#1           never seen           open, nobody",
                "a/b#2           open, bot            gone",
            ]
        );
        assert!(table(&[]).is_empty());
    }
}
