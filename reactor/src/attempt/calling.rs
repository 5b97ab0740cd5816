//! The call of an attempt. Nothing of it is sent once the lease is over, which is renewed until there
//! is an answer.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Instant};

use tokio::{sync::mpsc, time::sleep_until};

use super::{Attempt, Looked, hold, next, renewal};
use crate::{
    call::{self, Call, CallError},
    context::Request,
    process::Output,
    run::Ending,
};

impl Attempt {
    /// Calls an address until it has taken the call, or has refused it. One that cannot take it now is
    /// called again in another attempt.
    pub(super) async fn call(
        &mut self,
        call: &Call,
        input: &[u8],
        traceparent: Option<String>,
        written: Instant,
        mut requests: mpsc::Receiver<Request>,
    ) -> Ending {
        self.told_start();
        let id = format!(
            "{}.{}",
            self.run.id(&self.key),
            if self.run.tells_end { "ended" } else { "started" }
        );
        let called = call::send(call, &id, input, traceparent.as_deref());
        tokio::pin!(called);
        let mut held_until = written + hold(self.context.lease);
        let interval = renewal(self.context.lease);
        let mut due = Instant::now() + interval;
        let mut looking = None;
        let called = loop {
            tokio::select! {
                biased;
                called = before(held_until, called.as_mut()) => break called,
                () = sleep_until(held_until.into()) => break None,
                Some(looked) = next(&mut looking) => {
                    looking = None;
                    match looked {
                        Looked::Ours { run, revision, renewed } => {
                            (self.run, self.revision) = (*run, revision);
                            if let Some(begun) = renewed {
                                held_until = begun + hold(self.context.lease);
                            }
                        }
                        Looked::Lost => return Ending::RunnerLost,
                        Looked::Failed(error) => due = due.min(self.not_renewed(&error)),
                    }
                }
                () = sleep_until(due.into()), if looking.is_none() => {
                    due = Instant::now() + interval;
                    looking = Some(self.look(true));
                }
                Some(request) = requests.recv() => if let Request::Output(reply) = request {
                    let _ = reply.send(Output::default());
                },
            }
        };
        match called {
            Some(Ok(())) => Ending::Accepted,
            Some(Err(CallError::Refused(why))) => Ending::Refused(why),
            Some(Err(CallError::Again { problem, after })) => {
                self.after = after;
                Ending::Unavailable(problem)
            }
            None => Ending::Unavailable("the lease was over before an answer".into()),
        }
    }
}

/// Drives `future` on until `end`, and not one step further: None then. A timer beside it would be
/// late in a process that was suspended.
async fn before<T>(end: Instant, mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|context| {
        if Instant::now() < end {
            future.as_mut().poll(context).map(Some)
        } else {
            Poll::Ready(None)
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use super::*;

    #[tokio::test]
    async fn nothing_of_a_call_is_done_once_the_lease_is_over() {
        let now = Instant::now();
        let mut is_sent = false;
        let call = pin!(async { is_sent = true });
        assert_eq!(before(now, call).await, None);
        assert!(!is_sent);
        let call = pin!(async { is_sent = true });
        assert_eq!(before(now + Duration::from_secs(3600), call).await, Some(()));
        assert!(is_sent);
    }
}
