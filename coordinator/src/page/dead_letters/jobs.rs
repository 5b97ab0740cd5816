//! Redrives and drops that are under way, and the last ones that have ended.
//!
//! A letter is removed only after the broker has confirmed its event. So whatever ends a job in the
//! middle leaves each letter there, or redriven, or both. A second redrive of a letter stores no
//! second event, since the message id is the same.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use contract::names::DEAD_LETTERS;
use futures::{StreamExt, stream};
use service::peers::{Asked, Peers, Question, Reply};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    super::reads::{ReadError, Reads},
    letter::Letter,
};

/// Jobs under way at once.
const AT_ONCE: usize = 4;
/// Jobs that are remembered.
const REMEMBERED: usize = 32;
/// Lanes of a job that are worked at at once.
const LANES: usize = 16;
/// Letters of a job that are named because they could not be done.
const NAMED: usize = 20;
/// How long one look at the broker takes at most.
const PATIENCE: Duration = Duration::from_secs(3);
/// Tries of a letter that nobody answers for.
const TRIES: u32 = 5;

/// What is done with letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Action {
    Redrive,
    Drop,
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) all: u64,
    pub(super) done: u64,
    /// They were not there any more: somebody else has redriven or dropped them.
    pub(super) gone: u64,
    pub(super) refused: u64,
    /// The first of those, with the reason.
    pub(super) named: Vec<(u64, String)>,
    /// Why it has ended before all was done.
    pub(super) stopped: Option<String>,
    pub(super) has_ended: bool,
}

/// A job.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) action: Action,
    pub(super) progress: watch::Receiver<Progress>,
}

/// All jobs of this process.
#[derive(Default)]
pub(in super::super) struct Jobs(Mutex<Vec<(Uuid, Job)>>);

/// What became of a letter.
enum Outcome {
    Done,
    Gone,
    Refused(String),
    /// Nobody answers: the others are left as they are.
    Stop(String),
}

impl Jobs {
    /// Starts a job. None if too many are under way.
    pub(super) fn start(&self, peers: &Peers, action: Action, letters: &[Letter]) -> Option<Uuid> {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = jobs.iter().filter(|(_, job)| !job.progress.borrow().has_ended).count();
        if running >= AT_ONCE {
            return None;
        }
        let progress = Progress { all: letters.len() as u64, ..Progress::default() };
        let (sender, receiver) = watch::channel(progress);
        let id = Uuid::new_v4();
        if jobs.len() >= REMEMBERED
            && let Some(ended) = jobs.iter().position(|(_, job)| job.progress.borrow().has_ended)
        {
            jobs.remove(ended);
        }
        jobs.push((id, Job { action, progress: receiver }));
        tracing::info!(
            ?action,
            letters = letters.len(),
            "dead letters are worked at from the page"
        );
        tokio::spawn(run(peers.clone(), action, lanes(letters), sender));
        Some(id)
    }

    /// A job that is remembered.
    pub(super) fn get(&self, id: Uuid) -> Option<Job> {
        let jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.iter().find(|(known, _)| *known == id).map(|(_, job)| job.clone())
    }
}

/// Sequences of letters, those of one issue together and in order.
fn lanes(letters: &[Letter]) -> Vec<Vec<u64>> {
    let (mut order, mut lanes) = (Vec::new(), HashMap::<String, Vec<u64>>::new());
    for letter in letters {
        let lane = letter.lane();
        let sequences = lanes.entry(lane.clone()).or_default();
        if sequences.is_empty() {
            order.push(lane);
        }
        sequences.push(letter.sequence);
    }
    order.iter().filter_map(|lane| lanes.remove(lane)).collect()
}

async fn run(
    peers: Peers,
    action: Action,
    lanes: Vec<Vec<u64>>,
    progress: watch::Sender<Progress>,
) {
    let stop = CancellationToken::new();
    let (peers, progress_of_all, stop_of_all) = (&peers, &progress, &stop);
    let work = lanes.into_iter().map(|lane| async move {
        for sequence in lane {
            if stop_of_all.is_cancelled() {
                return;
            }
            let outcome = match action {
                Action::Redrive => redrive(peers, sequence).await,
                Action::Drop => drop_letter(peers, sequence).await,
            };
            progress_of_all.send_modify(|progress| progress.note(sequence, outcome, stop_of_all));
        }
    });
    stream::iter(work).buffer_unordered(LANES).collect::<Vec<()>>().await;
    progress.send_modify(|progress| progress.has_ended = true);
    let Progress { done, gone, refused, stopped, .. } = progress.borrow().clone();
    tracing::info!(?action, done, gone, refused, stopped, "the work at dead letters has ended");
}

impl Progress {
    fn note(&mut self, sequence: u64, outcome: Outcome, stop: &CancellationToken) {
        match outcome {
            Outcome::Done => self.done += 1,
            Outcome::Gone => self.gone += 1,
            Outcome::Refused(why) => {
                self.refused += 1;
                if self.named.len() < NAMED {
                    self.named.push((sequence, why));
                }
            }
            Outcome::Stop(why) => {
                self.stopped.get_or_insert(why);
                stop.cancel();
            }
        }
    }

    /// Letters that were worked at.
    pub(super) fn worked_at(&self) -> u64 {
        self.done + self.gone + self.refused
    }
}

/// Has ingest publish the event, and then removes the letter.
async fn redrive(peers: &Peers, sequence: u64) -> Outcome {
    for attempt in 1..=TRIES {
        match is_there(peers, sequence).await {
            Ok(true) => {}
            Ok(false) => return Outcome::Gone,
            Err(error) if attempt == TRIES => return Outcome::Stop(error.to_string()),
            Err(_) => {
                pause(attempt).await;
                continue;
            }
        }
        let answers = peers.ask(Asked::Ingest, &Question::Redrive { sequence }).await;
        let mut refused = None;
        for answer in answers {
            match answer.reply {
                Reply::Published { .. } => return remove_published(peers, sequence).await,
                Reply::Refused(why) => refused = Some(why),
                _ => {}
            }
        }
        match refused {
            // Somebody else may have been faster.
            Some(why) => {
                return match is_there(peers, sequence).await {
                    Ok(false) => Outcome::Gone,
                    _ => Outcome::Refused(why),
                };
            }
            None => pause(attempt).await,
        }
    }
    Outcome::Stop("No ingest answers.".into())
}

async fn remove_published(peers: &Peers, sequence: u64) -> Outcome {
    match drop_letter(peers, sequence).await {
        Outcome::Refused(why) | Outcome::Stop(why) => Outcome::Refused(format!(
            "published again, but not removed ({why}); a second redrive tells nothing twice"
        )),
        done => done,
    }
}

async fn drop_letter(peers: &Peers, sequence: u64) -> Outcome {
    let mut last = ReadError::TooLate;
    for attempt in 1..=TRIES {
        match Reads::new(peers.broker(), PATIENCE).delete(DEAD_LETTERS, sequence).await {
            Ok(()) => return Outcome::Done,
            Err(error) => last = error,
        }
        pause(attempt).await;
    }
    Outcome::Stop(last.to_string())
}

async fn is_there(peers: &Peers, sequence: u64) -> Result<bool, ReadError> {
    let reads = Reads::new(peers.broker(), PATIENCE);
    let stream = reads.stream(DEAD_LETTERS).await?;
    Ok(reads.message(&stream, sequence).await?.is_some())
}

async fn pause(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(200) * attempt).await;
}

#[cfg(test)]
mod tests {
    use super::{super::letter::tests::letter, *};

    #[test]
    fn letters_of_one_issue_are_in_one_lane_and_in_order() {
        let letters =
            [letter(1, "e", None), letter(2, "e", Some(b"x".to_vec())), letter(5, "e", None)];
        assert_eq!(lanes(&letters), [vec![1, 5], vec![2]]);
    }

    #[test]
    fn progress_counts_and_names_what_was_refused() {
        let (mut progress, stop) = (Progress::default(), CancellationToken::new());
        progress.note(1, Outcome::Done, &stop);
        progress.note(2, Outcome::Gone, &stop);
        for sequence in 0..30 {
            progress.note(sequence, Outcome::Refused("why".into()), &stop);
        }
        assert!(!stop.is_cancelled());
        progress.note(4, Outcome::Stop("first".into()), &stop);
        progress.note(5, Outcome::Stop("second".into()), &stop);
        assert_eq!((progress.worked_at(), progress.named.len()), (32, NAMED));
        assert_eq!(progress.stopped.as_deref(), Some("first"));
        assert!(stop.is_cancelled());
    }
}
