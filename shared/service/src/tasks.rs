//! Tasks that must not end before they are stopped.

use std::{io, panic, thread, time::Duration};

use futures::future::select_all;
use thiserror::Error;
use tokio::{sync::oneshot, task::JoinHandle};

/// A task that ended by itself, which is an error of the process.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Ended {
    /// The task returned.
    #[error("{0} ended by itself")]
    Returned(&'static str),
    /// The task panicked. The panic's message is in the log.
    #[error("{0} panicked")]
    Panicked(&'static str),
}

/// The tasks of a role. Dropping this aborts the tasks that still run.
#[derive(Debug, Default)]
pub struct Tasks(Vec<(&'static str, JoinHandle<()>)>);

impl Tasks {
    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.0.push((name, tokio::spawn(work)));
    }

    /// Starts a thread for work that blocks. It is supervised like a task, but never aborted.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn spawn_thread(
        &mut self,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name(name.into()).spawn(move || {
            let done = panic::catch_unwind(panic::AssertUnwindSafe(work));
            let _ = ended.send(done.is_ok());
        })?;
        self.spawn(name, async move {
            if !end.await.unwrap_or(false) {
                panic!("the thread {name} panicked");
            }
        });
        Ok(())
    }

    /// Waits until one of the tasks has ended. Never returns if there are no tasks.
    pub async fn one_ended(&mut self) -> Ended {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        let (ended, index, _) = select_all(self.0.iter_mut().map(|(_, task)| task)).await;
        let (name, _) = self.0.swap_remove(index);
        match ended {
            Ok(()) => Ended::Returned(name),
            Err(_) => Ended::Panicked(name),
        }
    }

    /// Waits until the task `name`, which was already asked to stop, has ended. Aborts it after
    /// `patience`. Returns whether it ended in time.
    ///
    /// # Errors
    /// If it panicked.
    pub async fn finish(&mut self, name: &'static str, patience: Duration) -> Result<bool, Ended> {
        let mut in_time = true;
        while let Some(index) = self.0.iter().position(|(task, _)| *task == name) {
            let (_, mut task) = self.0.swap_remove(index);
            match tokio::time::timeout(patience, &mut task).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Ended::Panicked(name)),
                Err(_) => {
                    task.abort();
                    in_time = false;
                }
            }
        }
        Ok(in_time)
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(|(_, task)| task.abort());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whatever_ends_is_named_and_how() {
        let mut tasks = Tasks::default();
        tasks.spawn("sleeper", std::future::pending());
        tasks.spawn("quitter", async {});
        assert_eq!(tasks.one_ended().await, Ended::Returned("quitter"));
        tasks.spawn("thrower", async { panic!("meant to") });
        assert_eq!(tasks.one_ended().await, Ended::Panicked("thrower"));
        tasks.spawn_thread("thread", || panic!("meant to")).expect("a thread");
        assert_eq!(tasks.one_ended().await, Ended::Panicked("thread"));
        tasks.spawn_thread("thread", || {}).expect("a thread");
        assert_eq!(tasks.one_ended().await, Ended::Returned("thread"));
    }

    #[tokio::test]
    async fn what_does_not_finish_in_time_is_aborted() {
        let mut tasks = Tasks::default();
        tasks.spawn("done", async {});
        tasks.spawn("stuck", std::future::pending());
        tasks.spawn("thrower", async { panic!("meant to") });
        let long = Duration::from_secs(60);
        assert_eq!(tasks.finish("done", long).await, Ok(true));
        assert_eq!(tasks.finish("stuck", Duration::from_millis(1)).await, Ok(false));
        assert_eq!(tasks.finish("never there", long).await, Ok(true));
        assert_eq!(tasks.finish("thrower", long).await, Err(Ended::Panicked("thrower")));
    }
}
