//! What goes wrong while Gitea is asked: one line for each cause, until a sweep is complete again.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use tracing::{info, warn};

/// Causes that are told apart. Others may choose their texts.
const MAX_CAUSES: usize = 32;

/// The causes that have their line.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<BTreeSet<String>>);

impl Trouble {
    /// Logs `error`, unless its cause has a line already. `what` is what failed.
    pub(crate) fn failed(&self, error: &str, what: &'static str) {
        if self.is_new(error) {
            warn!(error, "{what}; it is tried again, and the cause has no further line until then");
        }
    }

    fn is_new(&self, error: &str) -> bool {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        causes.len() < MAX_CAUSES && causes.insert(error.to_owned())
    }

    /// A sweep was complete: Gitea answers.
    pub(crate) fn over(&self) {
        let causes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if !causes.is_empty() {
            info!(causes = causes.len(), "Gitea answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_one_line_until_all_is_well() {
        let trouble = Trouble::default();
        let lines = |text: &str| trouble.is_new(text);
        assert_eq!([lines("a"), lines("a"), lines("b"), lines("a")], [true, false, true, false]);
        trouble.over();
        assert!(lines("a"));
        assert_eq!((0..1000).filter(|n| lines(&n.to_string())).count(), MAX_CAUSES - 1);
    }
}
