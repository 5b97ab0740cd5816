//! The state of an issue as subscribers know it, and the decision that led to it.
//!
//! This is the value of the issue's entry in the bucket of issue states. A decision is written
//! before its changes are published, so an entry may be ahead of the stream of changes by one
//! decision. docs/ARCHITECTURE.md, "Decide, publish, settle".

use std::collections::BTreeMap;

use contract::{
    change::{Change, ChangeKind},
    event::{Act, ActKind, IssueEvent, User},
    issue_state::{Lifecycle, Person},
    timestamp::Timestamp,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// Longest title and body of an event, together, that a decision keeps whole.
const WHOLE_TEXTS_BYTES: usize = 4 * 1024;
/// Characters of a title that a state keeps.
pub(crate) const TITLE_CHARS: usize = 200;
/// Size that an event with longer texts is cut to in a decision.
const CUT_EVENT_BYTES: usize = 8 * 1024;

/// The state of one issue after all of its decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct IssueState {
    /// Who is assigned.
    pub(crate) assignees: Vec<Person>,
    #[serde(deserialize_with = "known")]
    pub(crate) state: Lifecycle,
    /// `updated_at` of the newest event. None if no event had one yet.
    #[serde(default)]
    pub(crate) updated_at: Option<Timestamp>,
    /// Whether two events of that second contradict each other.
    #[serde(default)]
    pub(crate) in_doubt: bool,
    /// Prefixes of the digests of the bodies seen in that second.
    #[serde(default)]
    pub(crate) seen: Vec<String>,
    /// Prefixes of the digests of the last bodies that were seen in seconds before. One of them that
    /// comes again, from a second hook or by hand, raises no doubt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) earlier: Vec<String>,
    /// Gitea's clock when its API was last asked. What it said holds all of that second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answered_at: Option<Timestamp>,
    /// Whether the tombstone is there because Gitea's API did not know the issue any more. Unlike
    /// after a delivered deletion, it may turn out that the token could not see the issue.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) gone: bool,
    /// Prefixes of the digests of the bodies seen without a time. They are kept, because such a
    /// body would look new if it were delivered again after newer ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) undated: Vec<String>,
    /// `owner/name#number`, for people who inspect the bucket.
    #[serde(default)]
    pub(crate) issue: String,
    /// Gitea's id of the issue, and its title, for the end of an issue that is not there any more. 0 and
    /// empty in older entries.
    #[serde(default)]
    pub(crate) issue_id: i64,
    /// See `issue_id`. Cut to [`TITLE_CHARS`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) title: String,
    /// The delivery that led to this state. Empty if no event was decided, or if the decision on the
    /// first one was taken back.
    #[serde(default)]
    pub(crate) delivery_id: String,
    /// Sequence of the last change of each kind that was published before the decision, on the
    /// subjects of `issue`. A kind that is missing has none. It fences off a worker that was
    /// suspended: a change is published only if its subject's last sequence is still this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) last_changes: BTreeMap<ChangeKind, u64>,
    /// The last message that was parked because its attempts were used up, with nothing decided. A
    /// worker that was suspended with this message decides nothing either when it resumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parked: Option<MessageId>,
    /// What was decided last. None if nothing changed then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) decision: Option<Box<Decision>>,
}

/// A message of the stream of events. A redriven one is another message. The id is there because a
/// stream that was restored uses a sequence twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct MessageId {
    pub(crate) sequence: u64,
    pub(crate) id: String,
}

/// What one delivery changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Decision {
    /// Never empty, in the order of their publication.
    pub(crate) changes: Vec<Decided>,
    /// The event of the delivery. Long texts are cut: they matter only if the changes have to be
    /// published after the event itself is gone.
    pub(crate) event: IssueEvent,
    /// The state before, to take the decision back.
    pub(crate) before: IssueState,
}

/// The part of a change that does not follow from the event alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Decided {
    pub(crate) kind: ChangeKind,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) added: Vec<Person>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) removed: Vec<Person>,
    #[serde(default)]
    pub(crate) in_doubt: bool,
    #[serde(default)]
    pub(crate) first_seen: bool,
}

impl Decided {
    pub(crate) fn new(kind: ChangeKind) -> Self {
        Self { kind, added: Vec::new(), removed: Vec::new(), in_doubt: false, first_seen: false }
    }

    /// The change as it is published.
    pub(crate) fn change(&self, event: &IssueEvent) -> Change {
        let logins = |people: &[Person]| people.iter().map(|p| p.login.clone()).collect();
        let ids = |people: &[Person]| people.iter().map(|p| p.id).collect();
        Change {
            added: logins(&self.added),
            added_ids: ids(&self.added),
            removed: logins(&self.removed),
            removed_ids: ids(&self.removed),
            in_doubt: self.in_doubt,
            first_seen: self.first_seen,
            by: self.by(event),
            ..Change::from_event(self.kind, event)
        }
    }

    /// Who did it, as far as Gitea's timeline says so.
    fn by(&self, event: &IssueEvent) -> Vec<Option<User>> {
        let acts = event.synced.as_deref().map_or(&[][..], |synced| &synced.acts);
        // What was undone later has not led to this state. Gitea did it without a trace then.
        let of = |kind, whom: Option<&Person>| {
            let is_whom = |act: &&Act| match (whom, &act.whom) {
                (Some(person), Some(user)) => person.is(&user.into()),
                (None, _) => true,
                (Some(_), None) => false,
            };
            let is_of_kind = |act: &&Act| act.kind == kind || act.kind == opposite(kind);
            let last = acts.iter().rev().filter(is_of_kind).find(is_whom);
            last.filter(|act| act.kind == kind).map(|act| act.by.clone())
        };
        let of_all = |kind, people: &[Person]| people.iter().map(|p| of(kind, Some(p))).collect();
        let by: Vec<_> = match self.kind {
            ChangeKind::Unassigned => of_all(ActKind::Unassigned, &self.removed),
            ChangeKind::Assigned => of_all(ActKind::Assigned, &self.added),
            ChangeKind::Closed => vec![of(ActKind::Closed, None)],
            ChangeKind::Reopened => vec![of(ActKind::Reopened, None)],
            ChangeKind::Deleted | ChangeKind::Other => Vec::new(),
        };
        // Nothing known is an empty list.
        if by.iter().any(Option::is_some) { by } else { Vec::new() }
    }
}

/// Refuses a state of a newer worker, since writing it back would lose it.
fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lifecycle, D::Error> {
    match Lifecycle::deserialize(deserializer)? {
        Lifecycle::Other => Err(D::Error::custom("a state that this version does not know")),
        known => Ok(known),
    }
}

impl IssueState {
    /// Whether all changes of at least one event are decided.
    pub(crate) fn has_event(&self) -> bool {
        !self.delivery_id.is_empty()
    }

    /// Whether nothing was ever published about the issue: the entry only marks a parked message, or
    /// the decision on the first event was taken back as a whole.
    pub(crate) fn is_unseen(&self) -> bool {
        let Self { assignees, state, updated_at, issue, decision, .. } = self;
        !self.has_event()
            && issue.is_empty()
            && assignees.is_empty()
            && *state == Lifecycle::Open
            && updated_at.is_none()
            && decision.is_none()
    }

    /// Whether `message` was parked with nothing decided.
    pub(crate) fn has_parked(&self, message: &MessageId) -> bool {
        self.parked.as_ref() == Some(message)
    }

    /// The state with `changes` as the decision of `event`'s delivery.
    pub(crate) fn decided(
        mut self,
        changes: Vec<Decided>,
        event: &IssueEvent,
        before: Option<&Self>,
    ) -> Self {
        if let Some(before) = before.filter(|before| before.issue == self.issue) {
            self.last_changes.clone_from(&before.last_changes);
        }
        self.parked = before.and_then(|before| before.parked.clone());
        self.decision = (!changes.is_empty()).then(|| {
            let before = before.map(Self::undecided).unwrap_or_default();
            Box::new(Decision { changes, event: shortened(event), before })
        });
        self
    }

    /// The state without its decision, and without what only matters beside a decision.
    fn undecided(&self) -> Self {
        Self { decision: None, parked: None, last_changes: BTreeMap::new(), ..self.clone() }
    }

    /// The state after only the first `published` changes of its decision. The rest is judged again
    /// when the next event comes, as if nothing had failed.
    pub(crate) fn taken_back(&self, published: usize) -> Self {
        let Some(decision) = &self.decision else { return self.clone() };
        let mut state = decision.before.clone();
        state.last_changes.clone_from(&self.last_changes);
        state.parked.clone_from(&self.parked);
        if published > 0 {
            state.issue.clone_from(&self.issue);
        }
        for change in decision.changes.iter().take(published) {
            match change.kind {
                ChangeKind::Unassigned => {
                    state.assignees.retain(|known| !change.removed.iter().any(|p| p.is(known)));
                }
                ChangeKind::Assigned => state.assignees.extend(change.added.iter().cloned()),
                ChangeKind::Closed => state.state = Lifecycle::Closed,
                ChangeKind::Reopened => state.state = Lifecycle::Open,
                ChangeKind::Deleted => state.state = Lifecycle::Deleted,
                ChangeKind::Other => {}
            }
        }
        state
    }
}

fn opposite(kind: ActKind) -> ActKind {
    match kind {
        ActKind::Assigned => ActKind::Unassigned,
        ActKind::Unassigned => ActKind::Assigned,
        ActKind::Closed => ActKind::Reopened,
        ActKind::Reopened => ActKind::Closed,
        ActKind::Other => ActKind::Other,
    }
}

fn shortened(event: &IssueEvent) -> IssueEvent {
    let mut short = event.clone();
    // A change does not hold Gitea's own `changes`.
    short.changes = None;
    if short.issue.title.len() + short.issue.body.len() > WHOLE_TEXTS_BYTES {
        // An event that still is too large has long lists, which a change needs.
        short.cut_to(CUT_EVENT_BYTES);
    }
    short
}

#[cfg(test)]
mod tests {
    use contract::event;
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn person(id: i64, login: &str) -> Person {
        Person { id, login: login.into() }
    }

    prop_compose! {
        fn any_state()(
            people in vec((any::<i64>(), "(?s).*"), 0..5),
            lifecycle in 0..3_usize,
            micros in option::of(any::<i64>()),
            in_doubt: bool,
            [seen, undated] in [(); 2].map(|()| vec("[0-9a-f]{16}", 0..5)),
            [issue, delivery_id] in [(); 2].map(|()| "(?s).*"),
            last in option::of(any::<u64>()),
            decided: bool,
        ) -> IssueState {
            let state = IssueState {
                assignees: people.iter().map(|(id, login)| person(*id, login)).collect(),
                state: [Lifecycle::Open, Lifecycle::Closed, Lifecycle::Deleted][lifecycle],
                updated_at: micros.map(Timestamp::from_unix_micros),
                in_doubt,
                seen,
                earlier: undated.clone(),
                answered_at: micros.map(Timestamp::from_unix_micros),
                gone: decided,
                undated,
                issue_id: 7,
                title: issue.clone(),
                issue,
                delivery_id,
                last_changes: last.map(|last| (ChangeKind::Closed, last)).into_iter().collect(),
                parked: last.map(|sequence| MessageId { sequence, id: "d".into() }),
                decision: None,
            };
            let changes = vec![Decided::new(ChangeKind::Closed)];
            if decided { state.clone().decided(changes, &event::example(), Some(&state)) } else { state }
        }
    }

    proptest! {
        #[test]
        fn any_state_reads_back(state in any_state()) {
            let json = serde_json::to_vec(&state).expect("json");
            prop_assert_eq!(serde_json::from_slice::<IssueState>(&json).expect("own json"), state);
        }
    }

    #[test]
    fn a_state_of_the_first_form_is_read() {
        let least: IssueState =
            serde_json::from_str(r#"{"assignees":["bot"],"state":"closed"}"#).expect("least");
        assert_eq!(
            (least.state, least.updated_at, least.in_doubt),
            (Lifecycle::Closed, None, false)
        );
        assert_eq!(least.assignees, [person(0, "bot")]);
        assert!(least.decision.is_none());
    }

    #[test]
    fn a_state_of_a_newer_worker_is_refused_and_not_overwritten() {
        for (state, is_read) in [("open", true), ("deleted", true), ("frozen", false)] {
            let json = format!(r#"{{"assignees":[],"state":"{state}"}}"#);
            assert_eq!(serde_json::from_str::<IssueState>(&json).is_ok(), is_read, "{state}");
        }
    }

    #[test]
    fn who_did_it_is_named_by_the_last_act_and_not_by_one_that_was_undone() {
        let act = |kind, whom: Option<i64>, by| {
            let user = |id: i64| User { id, login: format!("u{id}") };
            Act { kind, whom: whom.map(user), by: user(by), at: None }
        };
        let mut event = event::example();
        event.synced = Some(Box::new(event::Synced {
            cause: event::SyncCause::Repair,
            known: String::new(),
            answered_at: None,
            raised_by: None,
            history: false,
            acts: vec![
                act(ActKind::Unassigned, Some(4), 1),
                act(ActKind::Assigned, Some(4), 2),
                act(ActKind::Unassigned, Some(5), 3),
                act(ActKind::Closed, None, 1),
                act(ActKind::Reopened, None, 2),
            ],
        }));
        let by = |decided: &Decided| {
            decided.by(&event).into_iter().map(|by| by.map(|user| user.id)).collect::<Vec<_>>()
        };
        let removed = vec![person(4, "u4"), person(5, "u5")];
        let unassigned = Decided { removed, ..Decided::new(ChangeKind::Unassigned) };
        assert_eq!(by(&unassigned), [None, Some(3)]);
        let added = vec![person(4, "u4")];
        assert_eq!(by(&Decided { added, ..Decided::new(ChangeKind::Assigned) }), [Some(2)]);
        assert_eq!(by(&Decided::new(ChangeKind::Closed)), []);
        assert_eq!(by(&Decided::new(ChangeKind::Reopened)), [Some(2)]);
    }

    #[test]
    fn a_decision_keeps_an_event_with_long_texts_cut() {
        let mut event = event::example();
        event.issue.body = "x".repeat(100_000);
        let state =
            IssueState::default().decided(vec![Decided::new(ChangeKind::Closed)], &event, None);
        let decision = state.decision.expect("a decision");
        assert!(decision.event.cut);
        assert!(serde_json::to_vec(&decision).expect("json").len() < 10_000);
    }
}
