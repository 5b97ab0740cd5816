//! Ingest and its journal, and the operator's listener of this machine.

use serde_json::Value;

use super::{http, report::Check, settings::Read};

/// Age of the oldest unpublished delivery from which on it is late, in seconds. An alert has the
/// same.
const LATE_SECS: f64 = 120.0;

/// What answers.
pub(super) struct Ingest {
    /// URL of the webhook.
    pub(super) webhook: Option<String>,
    /// URL of the operator's listener, if it is ingest's.
    pub(super) metrics: Option<String>,
}

pub(super) async fn check(read: &Read, checks: &mut Vec<Check>) -> Ingest {
    let (operator, webhook) = tokio::join!(health(&read.operator), find(&read.webhooks));
    checks.push(operator_told(&read.operator, operator.as_ref()));
    let is_ingests = operator.as_ref().is_ok_and(|health| health.get("journal").is_some());
    let metrics = is_ingests.then(|| format!("{}/metrics", read.operator));
    let webhook = match webhook {
        Ok((url, health)) => {
            checks.push(ingest_told(&url, &health));
            let limit = read.ingest.as_ref().map(|ingest| ingest.journal.max_bytes);
            checks.push(journal_told(&health["journal"], limit));
            Some(url)
        }
        Err(problem) => {
            checks.push(Check::wrong(
                "ingest",
                problem,
                "start it, or name its webhook with --url (WEBHOOK_URL)",
            ));
            checks.push(match operator.ok().filter(|_| is_ingests) {
                Some(health) => journal_told(&health["journal"], None),
                None => Check::needs("journal", "ingest"),
            });
            None
        }
    };
    Ingest { webhook, metrics }
}

/// The first of these webhooks whose health is that of an ingest.
async fn find(webhooks: &[String]) -> Result<(String, Value), String> {
    let mut problems = Vec::new();
    for url in webhooks {
        match health(url.trim_end_matches("/webhook/gitea")).await {
            Ok(health) if health.get("journal").is_some() => return Ok((url.clone(), health)),
            Ok(_) => problems.push(format!("what answers at {url} is no ingest")),
            Err(problem) => problems.push(format!("no ingest at {url}: {problem}")),
        }
    }
    Err(problems.join("; "))
}

/// The answer to `GET /health` below `base`.
async fn health(base: &str) -> Result<Value, String> {
    let answer = http::get(&format!("{base}/health")).await?;
    match (answer.status, serde_json::from_str::<Value>(&answer.body)) {
        (200 | 503, Ok(health)) if health["status"].is_string() => Ok(health),
        (421, _) => Err("it answers by other names only; see OPERATOR_HOSTS".into()),
        (status, _) => Err(format!("the answer is {status}, and no health of ours")),
    }
}

/// What is not well by the answer of a role.
fn complaints(health: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    if health["broker"] == "disconnected" {
        complaints.push("it has no connection to NATS".to_owned());
    }
    let unfit = health["unfit"].as_array().into_iter().flatten().filter_map(Value::as_str);
    complaints.extend(unfit.map(str::to_owned));
    if let Some(gitea) = health["gitea"].as_str().filter(|gitea| *gitea != "ok") {
        complaints.push(format!("Gitea's API fails ({gitea})"));
    }
    let ours = env!("CARGO_PKG_VERSION");
    if let Some(version) = health["version"].as_str().filter(|version| *version != ours) {
        complaints.push(format!("it is version {version}, and this program {ours}"));
    }
    complaints
}

fn operator_told(url: &str, health: Result<&Value, &String>) -> Check {
    let name = "operator's listener";
    match health {
        Err(problem) => Check::warning(
            name,
            format!("no role answers at {url}: {problem}"),
            "start a role here, or set OPERATOR_HOST and OPERATOR_PORT to those of one",
        ),
        Ok(health) => told(name, url, health),
    }
}

fn ingest_told(url: &str, health: &Value) -> Check {
    told("ingest", url, health)
}

fn told(name: &str, url: &str, health: &Value) -> Check {
    let status = health["status"].as_str().unwrap_or_default();
    let complaints = complaints(health);
    let mut found = format!("{status} at {url}");
    if !complaints.is_empty() {
        found = format!("{found}: {}", complaints.join("; "));
    }
    let remedy = "the checks below say more; then the log of the role";
    match status {
        "ok" if complaints.is_empty() => Check::ok(name, found),
        "unavailable" => Check::wrong(name, found, remedy),
        _ => Check::warning(name, found, remedy),
    }
}

/// `limit` is `JOURNAL_MAX_BYTES`, if it is known.
fn journal_told(journal: &Value, limit: Option<u64>) -> Check {
    let number = |name: &str| journal[name].as_u64().unwrap_or_default();
    let (depth, used, set_aside) = (number("depth"), number("used_bytes"), number("set_aside"));
    let age = journal["oldest_unpublished_age_secs"].as_f64().unwrap_or_default();
    let found = format!(
        "{depth} deliveries wait for NATS, the oldest for {age:.0} s; {} MiB used; {set_aside} set aside",
        used >> 20
    );
    if journal["writable"] != true {
        let remedy =
            "see the disk and JOURNAL_MAX_BYTES (docs/OPERATIONS.md, CoordinatorCannotKeep)";
        Check::wrong("journal", format!("it cannot be written; {found}"), remedy)
    } else if depth > 0 && age > LATE_SECS {
        let remedy = "see the checks of NATS, then ingest's log (docs/OPERATIONS.md, CoordinatorUnpublishedOld)";
        Check::warning("journal", found, remedy)
    } else if limit.is_some_and(|limit| used / 4 > limit / 5) {
        let remedy = "see docs/OPERATIONS.md, CoordinatorJournalNearLimit";
        Check::warning("journal", found, remedy)
    } else if set_aside > 0 {
        Check::warning("journal", found, "see docs/OPERATIONS.md, CoordinatorSetAside")
    } else {
        Check::ok("journal", found)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::report::Outcome, *};

    #[test]
    fn a_journal_is_judged_by_what_its_health_says() {
        let well = json!({"writable": true, "depth": 3, "oldest_unpublished_age_secs": 1.5, "used_bytes": 10, "set_aside": 0});
        let with = |field: &str, value: Value| {
            let mut journal = well.clone();
            journal[field] = value;
            journal
        };
        for (journal, expected) in [
            (well.clone(), Outcome::Ok),
            (with("writable", json!(false)), Outcome::Wrong),
            (with("oldest_unpublished_age_secs", json!(500)), Outcome::Warning),
            (with("used_bytes", json!(900)), Outcome::Warning),
            (with("set_aside", json!(1)), Outcome::Warning),
            (json!(null), Outcome::Wrong),
        ] {
            assert_eq!(journal_told(&journal, Some(1000)).outcome, expected, "{journal}");
        }
    }

    #[test]
    fn a_role_is_judged_by_its_health() {
        let version = env!("CARGO_PKG_VERSION");
        for (health, expected, part) in [
            (json!({"status": "ok", "version": version}), Outcome::Ok, "ok at http://h"),
            (
                json!({"status": "degraded", "version": version, "broker": "disconnected"}),
                Outcome::Warning,
                "no connection to NATS",
            ),
            (json!({"status": "unavailable", "version": version}), Outcome::Wrong, "unavailable"),
            (json!({"status": "ok", "version": "0.0.1"}), Outcome::Warning, "version 0.0.1"),
            (
                json!({"status": "degraded", "version": version, "unfit": ["stream X: found a"]}),
                Outcome::Warning,
                "stream X: found a",
            ),
        ] {
            let check = told("ingest", "http://h", &health);
            assert_eq!(check.outcome, expected, "{health}");
            assert!(check.found.contains(part), "{}", check.found);
        }
    }
}
