//! Processes large bodies one at a time, on a thread with low priority. A sender without the secret
//! can send many large bodies, and they must not take the processors from the small ones.

pub(crate) mod buffer;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Sender, channel},
};

use service::tasks::Tasks;
use tokio::sync::oneshot;

/// Size from which a body is processed here. A megabyte takes a millisecond or more.
pub(crate) const LARGE_BODY_BYTES: usize = 256 * 1024;
/// The thread's nice value. Under contention the thread gets a tenth of the processor time of
/// another thread. So the largest body is done within Gitea's 5 seconds (`DELIVER_TIMEOUT`), even
/// on a busy machine.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

type Work = Box<dyn FnOnce() + Send>;

/// The thread's queue. The memory limit for bodies bounds its length.
#[derive(Clone, Debug)]
pub(crate) struct LargeBodies {
    queue: Sender<Work>,
}

impl LargeBodies {
    /// Starts the thread. It ends when the last clone of the queue is dropped.
    pub(crate) fn start(tasks: &mut Tasks) -> io::Result<Self> {
        let (queue, waiting) = channel::<Work>();
        tasks.spawn_thread("the thread for large bodies", move || {
            give_way();
            for work in waiting {
                // A panic is logged and ends only this work. The caller sees that its reply was
                // dropped.
                let _ = catch_unwind(AssertUnwindSafe(work));
            }
        })?;
        Ok(Self { queue })
    }

    /// Runs `work` on the thread, in order. None if it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, done) = oneshot::channel();
        let work = move || {
            // If the connection was closed, no caller waits for the result, so the work is skipped.
            if !reply.is_closed() {
                let _ = reply.send(work());
            }
        };
        self.queue.send(Box::new(work)).ok()?;
        done.await.ok()
    }
}

/// Lowers the priority of this thread only. On Linux each thread has its own priority (sched(7)).
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
