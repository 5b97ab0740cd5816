//! Properties of [`judge`] that hold for all events. The property tests and the fuzzer supply the
//! events, and both check the properties here.

use std::collections::BTreeSet;

use contract::{
    event::{self, User},
    timestamp::Timestamp,
};

use super::*;

const ACTIONS: [&str; 11] = [
    "opened",
    "edited",
    "closed",
    "reopened",
    "assigned",
    "unassigned",
    "label_updated",
    "label_cleared",
    "milestoned",
    "demilestoned",
    "pinned",
];
const LOGINS: [&str; 4] = ["bot", "tom", "li-wei", "maria"];

/// Short form of an event. Two equal sketches stand for one body that is delivered twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sketch {
    pub(crate) action: &'static str,
    pub(crate) assignees: Vec<&'static str>,
    pub(crate) closed: bool,
    /// None if Gitea leaves it out.
    pub(crate) second: Option<u8>,
    /// The rest of the body.
    pub(crate) rest: u8,
}

impl Sketch {
    /// Any bytes give an event. Seconds, logins and bodies come from small sets.
    pub(crate) fn of_bytes([action, who, rest]: [u8; 3]) -> Self {
        let mut assignees: Vec<_> = LOGINS
            .into_iter()
            .enumerate()
            .filter_map(|(n, login)| (who >> n & 1 == 1).then_some(login))
            .collect();
        if let Some(first) = assignees.first().copied() {
            let by = usize::from(who >> 4 & 3) % assignees.len();
            assignees.rotate_left(by);
            // Gitea lists no login twice, but a duplicate must not break anything.
            if who >> 6 == 3 {
                assignees.push(first);
            }
        }
        let second = Some(rest >> 1 & 7).filter(|second| *second < 7);
        // Rare, since nothing follows it.
        let deleted = action > 250;
        let action = if deleted { "deleted" } else { ACTIONS[usize::from(action) % ACTIONS.len()] };
        Self { action, assignees, closed: rest & 1 == 1, second, rest: rest >> 4 & 3 }
    }

    /// The event, as delivery number `n`.
    pub(crate) fn event(&self, n: usize) -> IssueEvent {
        let mut event = event::example();
        let id = |login: &str| 1 + LOGINS.iter().position(|known| *known == login).unwrap_or(0);
        let user = |login: &&str| User { id: id(login) as i64, login: (*login).to_owned() };
        event.action = Action::from(self.action.to_owned());
        event.issue.assignees = self.assignees.iter().map(user).collect();
        event.issue.state = if self.closed { State::Closed } else { State::Open };
        event.issue.updated_at = self
            .second
            .map(|second| Timestamp::from_unix_micros((1 + i64::from(second)) * 1_000_000));
        event.delivery.id = format!("delivery-{n}");
        event.delivery.body_sha256 = digest(&format!("{self:?}"));
        event
    }

    /// The part of the event that a handler sees.
    pub(crate) fn snapshot(&self) -> (BTreeSet<&str>, bool) {
        (self.assignees.iter().copied().collect(), self.closed)
    }
}

/// Not SHA-256, but sufficient to distinguish the bodies of a test.
fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}").repeat(4)
}

/// Result of judging a sequence of events.
#[derive(Debug, Default)]
pub(crate) struct Story {
    pub(crate) state: Option<IssueState>,
    pub(crate) told: Vec<Decided>,
}

/// Judges events in this order, and checks the properties of each step.
pub(crate) fn story(sketches: &[Sketch]) -> Story {
    let mut story = Story::default();
    for (n, sketch) in sketches.iter().enumerate() {
        let event = sketch.event(n);
        if let Some((changes, next)) = step(story.state.as_ref(), &event) {
            story.told.extend(changes);
            story.state = Some(next);
        }
    }
    story
}

/// Judges one event, and checks all properties of one step.
pub(crate) fn step(
    known: Option<&IssueState>,
    event: &IssueEvent,
) -> Option<(Vec<Decided>, IssueState)> {
    let verdict = judge(known, event);
    assert_eq!(verdict, judge(known, event), "the same question has the same answer");
    let known = known.filter(|state| !state.is_unseen());
    let digest = &event.delivery.body_sha256;
    let (changes, next) = match verdict {
        Judgement::Stale { asks } => {
            let known = known.expect("nothing is stale where nothing is known");
            if known.state == Lifecycle::Deleted {
                assert_eq!(asks, known.gone, "only what was delivered is final");
            } else {
                assert!(asks, "what was never seen is not dropped without a question");
                let is_answered = event.issue.updated_at < known.answered_at;
                assert!(event.issue.updated_at < known.updated_at || is_answered);
                let is_undated = event.issue.updated_at.is_none();
                assert!(!is_undated || is_answered, "unknown is never oldest");
            }
            return None;
        }
        Judgement::Outrun => panic!("a webhook is never outrun"),
        Judgement::NothingNew => {
            let known = known.expect("all is new where nothing is known");
            // The body's time decides which of the two lists holds it. A state from the bucket may
            // differ.
            let mut seen = known.seen.iter().chain(&known.undated).chain(&known.earlier);
            assert!(seen.any(|start| digest.starts_with(start.as_str())));
            return None;
        }
        Judgement::New { changes, next } => (changes, *next),
    };
    check_changes(known, event, &changes, &next);
    check_next(known, event, &next);

    let mut again = event.clone();
    again.delivery.id = "another hook's".into();
    for event in [event, &again] {
        assert_eq!(judge(Some(&next), event), Judgement::NothingNew, "a second time");
    }
    Some((changes, next))
}

fn check_changes(
    known: Option<&IssueState>,
    event: &IssueEvent,
    changes: &[Decided],
    next: &IssueState,
) {
    assert!(changes.is_sorted_by(|a, b| a.kind < b.kind), "in order, and one of a kind");
    let mut told = Told::of(known);
    if known.is_none() && event.action == Action::Deleted {
        told.assignees = people(event).iter().map(|person| person.login.clone()).collect();
    }
    let decided = next.clone().decided(changes.to_vec(), event, known);
    for (n, change) in changes.iter().enumerate() {
        told.apply(change, known.is_none() && event.action != Action::Deleted);
        assert_eq!(change.first_seen, known.is_none_or(|state| !state.has_event()));
        assert_eq!(change.in_doubt, changes[0].in_doubt);
        assert!(!change.in_doubt || next.in_doubt, "a doubt that was told is remembered");
        let so_far = decided.taken_back(n + 1);
        if known.is_some() || event.action != Action::Deleted {
            assert_eq!(Told::of(Some(&so_far)), told);
        }
        let left = changes[n + 1..].to_vec();
        if !left.is_empty() {
            let rest = Judgement::New { changes: left, next: Box::new(next.clone()) };
            assert_eq!(judge(Some(&so_far), event), rest, "the next attempt tells the rest");
        }
    }
    assert_eq!(told, Told::of(Some(next)), "what was told adds up to the state");
}

fn check_next(known: Option<&IssueState>, event: &IssueEvent, next: &IssueState) {
    let before = known.and_then(|state| state.updated_at);
    assert_eq!(next.updated_at, before.max(event.issue.updated_at));
    if event.action == Action::Deleted {
        assert_eq!((next.assignees.len(), next.state), (0, Lifecycle::Deleted));
    } else {
        assert_eq!(next.assignees, people(event));
        assert_eq!(next.state, event.issue.state.into());
    }
    assert_eq!(next.delivery_id, event.delivery.id);
    let digest = &event.delivery.body_sha256[..SEEN_DIGITS.min(event.delivery.body_sha256.len())];
    let (seen, before) = match event.issue.updated_at {
        Some(_) => (&next.seen, known.map_or(0, |state| state.seen.len())),
        None => (&next.undated, known.map_or(0, |state| state.undated.len())),
    };
    assert_eq!(seen.last().map(String::as_str), Some(digest), "the body is remembered");
    assert!(seen.len() <= before.max(SEEN_MAX));
    let json = serde_json::to_vec(next).expect("a state is written");
    assert_eq!(&serde_json::from_slice::<IssueState>(&json).expect("own JSON"), next);
}

/// The state of an issue as a subscriber to changes sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    assignees: BTreeSet<String>,
    lifecycle: Lifecycle,
}

impl Told {
    fn of(state: Option<&IssueState>) -> Self {
        state.map_or_else(Self::default, |state| Self {
            assignees: state.assignees.iter().map(|person| person.login.clone()).collect(),
            lifecycle: state.state,
        })
    }

    /// Applies a change, which must be possible in this state. The action is `believed` only for an
    /// issue about which nothing is known.
    fn apply(&mut self, change: &Decided, believed: bool) {
        let Decided { kind, added, removed, .. } = change;
        let (adds, removes) = (!added.is_empty(), !removed.is_empty());
        match kind {
            ChangeKind::Assigned => assert!(adds && !removes),
            ChangeKind::Unassigned => assert!(!adds && removes != believed),
            ChangeKind::Closed => {
                assert!(!adds && !removes && self.lifecycle == Lifecycle::Open);
                self.lifecycle = Lifecycle::Closed;
            }
            ChangeKind::Reopened => {
                assert!(!adds && !removes && (self.lifecycle == Lifecycle::Closed) != believed);
                self.lifecycle = Lifecycle::Open;
            }
            ChangeKind::Deleted => {
                assert!(!adds && !removes && self.lifecycle != Lifecycle::Deleted);
                self.lifecycle = Lifecycle::Deleted;
            }
            ChangeKind::Other => panic!("a kind that is never published"),
        }
        for Person { login, .. } in added {
            assert!(self.assignees.insert(login.clone()), "{login} was there");
        }
        for Person { login, .. } in removed {
            assert!(self.assignees.remove(login), "{login} was not there");
        }
    }
}

/// The part of a state that a handler sees.
pub(crate) fn snapshot(state: &IssueState) -> (BTreeSet<&str>, bool) {
    let logins = state.assignees.iter().map(|person| person.login.as_str()).collect();
    (logins, state.state == Lifecycle::Closed)
}

/// Checks the final state of a story, in any order of delivery: it is the newest second's snapshot,
/// or a doubt for which there is a reason.
pub(crate) fn check_end(delivered: &[Sketch], end: Option<&IssueState>) {
    let Some(end) = end else {
        assert!(delivered.is_empty(), "something was delivered, and nothing is known");
        return;
    };
    if delivered.iter().any(|sketch| sketch.action == "deleted") {
        assert_eq!((end.assignees.len(), end.state), (0, Lifecycle::Deleted), "{end:?}");
        return;
    }
    let newest = delivered.iter().map(|sketch| sketch.second).max().flatten();
    let is_newest = |sketch: &&Sketch| sketch.second == newest;
    let rivals: Vec<_> = delivered.iter().filter(|s| is_newest(s) || s.second.is_none()).collect();
    let ends_as = |sketch: &Sketch| sketch.snapshot() == snapshot(end);
    assert!(rivals.iter().any(|sketch| ends_as(sketch)), "it ends in what nobody said: {end:?}");
    if end.in_doubt {
        let all_agree = rivals.iter().all(|sketch| sketch.snapshot() == rivals[0].snapshot());
        assert!(!all_agree, "in doubt, and nothing contradicts: {end:?}");
    } else {
        let agree = delivered.iter().filter(is_newest).all(ends_as);
        assert!(agree, "not the newest, and not in doubt: {end:?}");
    }
}
