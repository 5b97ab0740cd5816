//! Work on large bodies, one at a time, on a thread that gives way to all others: it needs
//! no secret to send many, and they must not take the processors from the small ones.

pub(crate) mod buffer;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Sender, channel},
};

use service::tasks::Tasks;
use tokio::sync::oneshot;

/// Size from which a body is worked on here: a megabyte takes a millisecond or more.
pub(crate) const LARGE_BODY_BYTES: usize = 256 * 1024;
/// The thread's nice value: a tenth of what others get where all want a processor, so that
/// the largest body is done within Gitea's 5 seconds (`DELIVER_TIMEOUT`) on a busy machine too.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

type Work = Box<dyn FnOnce() + Send>;

/// The thread's queue. What waits in it is bounded by the memory that bodies may take.
#[derive(Clone, Debug)]
pub(crate) struct LargeBodies {
    queue: Sender<Work>,
}

impl LargeBodies {
    /// Starts the thread, which ends with the last clone of the queue.
    pub(crate) fn start(tasks: &mut Tasks) -> io::Result<Self> {
        let (queue, waiting) = channel::<Work>();
        tasks.spawn_thread("the thread for large bodies", move || {
            give_way();
            for work in waiting {
                // A panic over one body is logged; who waits for the work sees its reply dropped.
                let _ = catch_unwind(AssertUnwindSafe(work));
            }
        })?;
        Ok(Self { queue })
    }

    /// Does `work` when its turn has come. None if it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, done) = oneshot::channel();
        let work = move || {
            // Nobody waits for it any more where the connection has broken off.
            if !reply.is_closed() {
                let _ = reply.send(work());
            }
        };
        self.queue.send(Box::new(work)).ok()?;
        done.await.ok()
    }
}

/// Lowers the priority of this thread, which on Linux is a thread's own (sched(7)).
#[cfg(target_os = "linux")]
fn give_way() {
    use rustix::process::{getpriority_process, setpriority_process};

    let lowered =
        getpriority_process(None).and_then(|nice| setpriority_process(None, nice.max(NICE)));
    if let Err(error) = lowered {
        tracing::debug!(%error, "large bodies are worked on with the priority of all others");
    }
}

#[cfg(not(target_os = "linux"))]
fn give_way() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_panics_is_told_and_the_next_one_is_done() {
        let large_bodies = LargeBodies::start(&mut Tasks::default()).expect("a thread");
        let panicked = large_bodies.run(|| -> u8 { panic!("meant to") }).await;
        assert_eq!(panicked, None);
        assert_eq!(large_bodies.run(|| 7).await, Some(7));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_done() {
        let large_bodies = LargeBodies::start(&mut Tasks::default()).expect("a thread");
        let (go, wait) = channel::<()>();
        let (told, asked) = channel();
        let mut first = Box::pin(large_bodies.run(move || wait.recv()));
        let mut second = Box::pin(large_bodies.run(move || told.send(())));
        let _ = futures::poll!(&mut first);
        let _ = futures::poll!(&mut second);
        drop(second);
        go.send(()).expect("the first one waits");
        assert_eq!(first.await, Some(Ok(())));
        assert_eq!(large_bodies.run(|| 7).await, Some(7));
        assert!(asked.recv().is_err(), "the second one was never done");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn its_thread_gives_way_and_no_other_does() {
        let nice = || rustix::process::getpriority_process(None).expect("a priority");
        let before = nice();
        let large_bodies = LargeBodies::start(&mut Tasks::default()).expect("a thread");
        assert_eq!(large_bodies.run(nice).await, Some(NICE.max(before)));
        assert_eq!(nice(), before);
    }
}
