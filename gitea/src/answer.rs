//! What Gitea answered, and when by its clock.

use time::OffsetDateTime;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// What was asked for.
    pub value: T,
    /// The header `Date`: Gitea's clock, to the second.
    pub date: Option<OffsetDateTime>,
    /// The header `X-Total-Count`: how many there are on all pages, of what is listed by page.
    pub total: Option<u64>,
}

impl<T> Answer<T> {
    pub(crate) fn map<U>(self, to: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { value: to(self.value), date: self.date, total: self.total }
    }
}
