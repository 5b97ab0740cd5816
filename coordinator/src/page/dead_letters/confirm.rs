//! The page that says what a redrive or a drop will do, and the start of it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Bytes,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::{IntoResponse, Redirect},
};
use contract::{issue_state::KnownIssue, names::DEAD_LETTERS};
use futures::future::join_all;
use maud::{Markup, html};

use super::{
    super::{
        failure::{Answer, Failure},
        fields::Fields,
        layout::{self, Part},
        reads::{ReadError, Reads},
        security::{self, Viewer},
        state::Shared,
        text,
    },
    jobs::Action,
    letter::{Filter, Letter},
    list,
};

/// Letters of one job.
pub(super) const MOST: usize = 5_000;
/// Letters whose issues are looked at for what a redrive will do.
const LOOKED_AT: usize = 200;
/// Letters that can be chosen one by one.
const MOST_CHOSEN: usize = 200;
/// How long all looks take at most.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it takes at most to learn whether this user may remove a letter.
const PERMISSION: Duration = Duration::from_millis(700);

/// What is to be done with which letters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    action: Action,
    /// These, or all that match.
    chosen: Option<Vec<u64>>,
    filter: Filter,
    /// Of all that match, those up to this sequence: what came later was not seen.
    through: u64,
}

impl Wish {
    fn of(fields: &Fields) -> Result<Self, Failure> {
        let (action, all) = match fields.get("what") {
            "redrive" => (Action::Redrive, false),
            "drop" => (Action::Drop, false),
            "redrive-all" => (Action::Redrive, true),
            "drop-all" => (Action::Drop, true),
            _ => return Err(Failure::BadRequest("It does not say what is to be done.".into())),
        };
        let mut chosen = Vec::new();
        for text in fields.all("sequence") {
            let bad = |_| Failure::BadRequest("A chosen letter has no number.".into());
            chosen.push(text.parse::<u64>().map_err(bad)?);
        }
        chosen.sort_unstable();
        chosen.dedup();
        if !all && chosen.is_empty() {
            return Err(Failure::BadRequest("No dead letter is chosen.".into()));
        }
        if chosen.len() > MOST_CHOSEN {
            return Err(Failure::BadRequest(format!("More than {MOST_CHOSEN} are chosen.")));
        }
        Ok(Self {
            action,
            chosen: (!all).then_some(chosen),
            filter: Filter::of(fields),
            through: fields.number("through").unwrap_or(u64::MAX),
        })
    }

    async fn letters(&self, reads: &Reads) -> Result<Vec<Letter>, ReadError> {
        match &self.chosen {
            Some(chosen) => list::chosen(reads, chosen).await,
            None => list::oldest(reads, &self.filter, self.through, MOST).await,
        }
    }

    fn what(&self) -> &'static str {
        match (self.action, self.chosen.is_some()) {
            (Action::Redrive, true) => "redrive",
            (Action::Drop, true) => "drop",
            (Action::Redrive, false) => "redrive-all",
            (Action::Drop, false) => "drop-all",
        }
    }
}

/// What a redrive will do, as far as it can be told before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outlook {
    letters: usize,
    looked_at: usize,
    /// Their event cannot be read by this version.
    unreadable: usize,
    /// Newer events of their issue were handled.
    older: usize,
    /// Their issue is gone.
    deleted: usize,
}

impl Outlook {
    /// `known` is the state of each issue, by its lane.
    fn of(letters: &[Letter], known: &HashMap<String, KnownIssue>) -> Self {
        let mut outlook = Self {
            letters: letters.len(),
            looked_at: letters.len().min(LOOKED_AT),
            ..Self::default()
        };
        for letter in letters.iter().take(LOOKED_AT) {
            let Some(event) = &letter.event else {
                outlook.unreadable += 1;
                continue;
            };
            let Some(issue) = known.get(&letter.lane()) else { continue };
            if issue.state == contract::issue_state::Lifecycle::Deleted {
                outlook.deleted += 1;
            } else if event
                .updated_at
                .zip(issue.updated_at)
                .is_some_and(|(event, known)| event < known)
            {
                outlook.older += 1;
            }
        }
        outlook
    }

    fn lines(&self) -> Vec<String> {
        let Self { letters, looked_at, unreadable, older, deleted } = *self;
        let of_looked_at = if looked_at < letters {
            format!(" (of the first {looked_at})")
        } else {
            String::new()
        };
        let events = |number: usize| text::count(number as u64, "event", "events");
        let mut lines = vec![format!(
            "{} published again by ingest and handled by a worker behind what waits there; each is removed \
             from the dead letters once the broker has confirmed it.",
            if letters == 1 { "1 event is".to_owned() } else { format!("{letters} events are") }
        )];
        if older > 0 {
            lines.push(format!(
                "{}{of_looked_at} older than what was told: nothing changes by them.",
                events(older)
            ));
        }
        if deleted > 0 {
            lines.push(format!(
                "{}{of_looked_at} of an issue that is deleted: nothing changes by them.",
                events(deleted)
            ));
        }
        if unreadable > 0 {
            lines.push(format!(
                "{}{of_looked_at} cannot be read by this version: they are given up again, unless a worker of \
                 another version can.",
                events(unreadable)
            ));
        }
        if letters > older + deleted + unreadable {
            lines.push(
                "What follows from the others and is not known yet is told to subscribers.".into(),
            );
        }
        lines
    }
}

/// The page that says what will happen.
pub(in super::super) async fn confirm(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    RawQuery(query): RawQuery,
) -> Answer {
    let wish = Wish::of(&Fields::parse(query.unwrap_or_default()))?;
    let reads = Reads::new(shared.peers.broker(), PATIENCE);
    let letters = wish.letters(&reads).await;
    let letters = letters
        .map_err(|error| Failure::Unavailable(format!("The letters cannot be read: {error}.")))?;
    if letters.is_empty() {
        return Err(Failure::NotFound("There is no such dead letter, or no longer.".into()));
    }
    let may = may_remove(&shared).await;
    let main = html! {
        @if !may { (not_here()) }
        (outlook(&reads, &wish, &letters).await)
        @if wish.chosen.is_none() && letters.len() == MOST {
            p { "These are the oldest " (text::number(MOST as u64)) ". The others are left for another time." }
        }
        form method="post" action="/dead-letters/jobs" {
            (layout::form_token(&viewer))
            input type="hidden" name="what" value=(wish.what());
            @match &wish.chosen {
                Some(_) => { @for letter in &letters { input type="hidden" name="sequence" value=(letter.sequence); } }
                None => {
                    input type="hidden" name="q" value=(wish.filter.text);
                    input type="hidden" name="reason" value=(wish.filter.reason);
                    input type="hidden" name="through" value=(letters.last().map_or(0, |letter| letter.sequence));
                }
            }
            div.row {
                @match wish.action {
                    Action::Redrive => button disabled[!may] { "Redrive " (letters.len()) },
                    Action::Drop => button.danger disabled[!may] { "Drop " (letters.len()) " for ever" },
                }
                a href="/dead-letters" { "Back" }
            }
        }
    };
    let number = text::count(letters.len() as u64, "dead letter", "dead letters");
    let title = match wish.action {
        Action::Redrive => format!("Redrive {number}?"),
        Action::Drop => format!("Drop {number}?"),
    };
    Ok(layout::page(&viewer, Part::DeadLetters, &title, main).into_response())
}

fn not_here() -> Markup {
    html! {
        div.note.warn role="note" { p {
            "This process may not remove dead letters, or NATS did not answer. Do it on a worker's page."
        } }
    }
}

async fn may_remove(shared: &Shared) -> bool {
    Reads::new(shared.peers.broker(), PERMISSION).may_delete(DEAD_LETTERS).await
}

async fn outlook(reads: &Reads, wish: &Wish, letters: &[Letter]) -> Markup {
    let lines = match wish.action {
        Action::Drop => {
            let number = text::count(letters.len() as u64, "dead letter is", "dead letters are");
            vec![
                format!("{number} removed and cannot be brought back from here."),
                "What they would have told is told with the next event of their issues, if at all."
                    .into(),
            ]
        }
        Action::Redrive => {
            let lanes: HashMap<String, (i64, u64)> = letters
                .iter()
                .take(LOOKED_AT)
                .filter_map(|letter| {
                    let event = letter.event.as_ref()?;
                    Some((letter.lane(), (event.repository_id, event.place.2)))
                })
                .collect();
            let look = lanes.into_iter().map(async |(lane, (repository_id, number))| {
                let entry = reads.issue_entry(repository_id, number).await.ok()??;
                Some((lane, serde_json::from_slice::<KnownIssue>(&entry.payload).ok()?))
            });
            let known = join_all(look).await.into_iter().flatten().collect();
            Outlook::of(letters, &known).lines()
        }
    };
    html! { ul { @for line in lines { li { (line) } } } }
}

/// Starts it.
pub(in super::super) async fn start(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let fields = security::form(&shared, &viewer, &headers, &body)?;
    let wish = Wish::of(&fields)?;
    // Whoever may not remove a letter does not publish it either: it would stay, and be published again.
    if !may_remove(&shared).await {
        let why = "This process may not remove dead letters, or NATS did not answer. Do it on a worker's page.";
        return Err(Failure::Unavailable(why.into()));
    }
    let reads = Reads::new(shared.peers.broker(), PATIENCE);
    let letters = wish.letters(&reads).await;
    let letters = letters
        .map_err(|error| Failure::Unavailable(format!("The letters cannot be read: {error}.")))?;
    let Some(id) = shared.jobs.start(&shared.peers, wish.action, &letters) else {
        return Err(Failure::TooMany(
            "Other redrives are under way. Wait until one has ended.".into(),
        ));
    };
    Ok(Redirect::to(&format!("/dead-letters/jobs/{id}")).into_response())
}

#[cfg(test)]
mod tests {
    use contract::{event, issue_state::Lifecycle, timestamp::Timestamp};

    use super::{super::letter::tests::letter, *};

    #[test]
    fn a_wish_says_what_and_which() {
        let wish = |text: &str| Wish::of(&Fields::parse(text));
        let chosen = wish("what=drop&sequence=3&sequence=1&sequence=3&q=x").expect("a wish");
        assert_eq!((chosen.action, chosen.chosen), (Action::Drop, Some(vec![1, 3])));
        let all = wish("what=redrive-all&q=bot&through=9&sequence=1").expect("a wish");
        assert_eq!((all.action, all.chosen, all.through), (Action::Redrive, None, 9));
        assert_eq!(all.filter.text, "bot");
        let many = (0..300).map(|n| format!("&sequence={n}")).collect::<String>();
        for text in [
            "",
            "what=x&sequence=1",
            "what=redrive",
            "what=drop&sequence=x",
            &format!("what=drop{many}"),
        ] {
            assert!(matches!(wish(text), Err(Failure::BadRequest(_))), "{text}");
        }
    }

    #[test]
    fn what_a_redrive_will_do_is_told_by_what_is_known() {
        let letters =
            [letter(1, "e", None), letter(2, "e", Some(b"{".to_vec())), letter(3, "e", None)];
        let updated_at = event::example().issue.updated_at.expect("a time");
        let later = Timestamp::from_unix_micros(updated_at.unix_micros() + 1);
        let known = |state, updated_at| {
            let issue = KnownIssue { state, updated_at: Some(updated_at), ..KnownIssue::default() };
            HashMap::from([(letters[0].lane(), issue)])
        };
        let of = |known: &HashMap<String, KnownIssue>| {
            let outlook = Outlook::of(&letters, known);
            (outlook.unreadable, outlook.older, outlook.deleted)
        };
        assert_eq!(of(&HashMap::new()), (1, 0, 0));
        assert_eq!(of(&known(Lifecycle::Open, updated_at)), (1, 0, 0));
        assert_eq!(of(&known(Lifecycle::Closed, later)), (1, 2, 0));
        assert_eq!(of(&known(Lifecycle::Deleted, updated_at)), (1, 0, 2));
        let lines = Outlook::of(&letters, &known(Lifecycle::Open, later)).lines().join("\n");
        assert!(
            lines.contains("3 events are published") && lines.contains("2 events older"),
            "{lines}"
        );
        assert!(!lines.contains("the others"), "{lines}");
    }
}
