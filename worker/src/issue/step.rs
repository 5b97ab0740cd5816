//! The step of an issue: from its state and an event to what has to be done. It is one pure
//! function, and knows no broker.

use contract::event::IssueEvent;

use super::{
    diff::{self, Judgement},
    state::{IssueState, MessageId},
};

/// What an event means for its issue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// The last decision may not be published. That comes first, whichever delivery it is of.
    Publish,
    /// Older than the known state. `asks` says whether Gitea's API has to be asked.
    Stale { asks: bool },
    /// This body was already seen.
    NothingNew,
    /// Gitea's API said it when less was known, and has to be asked again.
    Outrun,
    /// The message was parked meanwhile.
    Parked,
    /// Write this state. Then publish its decision, if it has one.
    Decide(Box<IssueState>),
}

/// The next step for `event`, which came as `message`. `known` is the issue's entry; its decision is
/// there as long as it may not be published.
pub(crate) fn step(known: Option<&IssueState>, event: &IssueEvent, message: &MessageId) -> Step {
    if known.is_some_and(|state| state.decision.is_some()) {
        return Step::Publish;
    }
    if known.is_some_and(|state| state.has_parked(message)) {
        return Step::Parked;
    }
    match diff::judge(known, event) {
        Judgement::Stale { asks } => Step::Stale { asks },
        Judgement::Outrun => Step::Outrun,
        Judgement::NothingNew => Step::NothingNew,
        Judgement::New { changes, next } => {
            Step::Decide(Box::new(next.decided(changes, event, known)))
        }
    }
}
