//! What stands on the broker and is not as the product needs it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::{info, warn};

/// One thing on the broker that is not as needed.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was found.
    pub found: String,
    /// What is needed in its place, or what to do.
    pub needed: String,
    /// Whether the product cannot do its work with it. Otherwise it endangers a promise.
    pub unfit: bool,
    /// What the broker denied meanwhile. It names one subject of many, so that it is not compared.
    denial: Option<String>,
}

impl PartialEq for Finding {
    fn eq(&self, other: &Self) -> bool {
        (&self.found, &self.needed, self.unfit) == (&other.found, &other.needed, other.unfit)
    }
}

impl Finding {
    /// Something with which the product cannot do its work.
    pub fn unfit(found: impl Into<String>, needed: impl Into<String>) -> Self {
        Self { found: found.into(), needed: needed.into(), unfit: true, denial: None }
    }

    /// Something that endangers a promise.
    pub fn danger(found: impl Into<String>, needed: impl Into<String>) -> Self {
        Self { unfit: false, ..Self::unfit(found, needed) }
    }

    /// Adds what the broker denied meanwhile.
    pub fn with_denial(self, denial: Option<String>) -> Self {
        Self { denial, ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "found {}, needed {}", self.found, self.needed)?;
        self.denial.as_ref().map_or(Ok(()), |denial| write!(f, "; NATS denies: {denial}"))
    }
}

/// All findings of one role, by object. Each is logged once, and once more when it is over.
#[derive(Debug, Default)]
pub struct Findings(Mutex<BTreeMap<String, Vec<Finding>>>);

impl Findings {
    /// Replaces the findings about an object. None of them means that it is as needed.
    pub fn set(&self, object: &str, findings: Vec<Finding>) {
        let mut all = self.lock();
        let before = all.get(object).map_or(&[][..], Vec::as_slice);
        // No parent span: what stands on the broker belongs to no delivery.
        for new in findings.iter().filter(|new| !before.contains(new)) {
            let Finding { found, needed, denial, .. } = new;
            warn!(parent: None, object, found, needed, denial, "what stands on the broker is not as needed");
        }
        if findings.is_empty() {
            if all.remove(object).is_some() {
                info!(parent: None, object, "what stands on the broker is as needed again");
            }
        } else {
            all.insert(object.to_owned(), findings);
        }
    }

    /// With what the product cannot do its work, for the operator.
    pub fn unfit(&self) -> Vec<String> {
        let all = self.lock();
        let findings = all.iter().flat_map(|(object, findings)| {
            findings.iter().filter(|one| one.unfit).map(move |one| format!("{object}: {one}"))
        });
        findings.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Finding>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_unfit_and_stands_is_shown() {
        let findings = Findings::default();
        findings.set("stream A", vec![Finding::unfit("x", "y"), Finding::danger("short", "long")]);
        findings.set("stream B", vec![Finding::unfit("1", "2")]);
        assert_eq!(
            findings.unfit(),
            ["stream A: found x, needed y", "stream B: found 1, needed 2"]
        );
        findings.set("stream A", Vec::new());
        assert_eq!(findings.unfit(), ["stream B: found 1, needed 2"]);
    }
}
