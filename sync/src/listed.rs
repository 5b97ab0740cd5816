//! Whether Gitea still lists an issue that it does not show by itself.

use gitea::{ApiError, IssueQuery};

use crate::{context::Context, windows::PAGE};

/// Requests for one answer at most. A repository of a million issues needs fifteen.
const MAX_REQUESTS: u32 = 30;

/// Where an issue would be listed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) owner: &'a str,
    pub(crate) repository: &'a str,
    pub(crate) repository_id: i64,
    pub(crate) number: u64,
    /// Gitea has said that the repository of this id has this name. Otherwise it may be another's now, and
    /// an empty list does not tell whose it is.
    pub(crate) is_named: bool,
}

/// Whether the list of the repository holds the issue. None if that cannot be told.
///
/// The list has the newest issue first, so an issue is looked for by halves. That holds only while the
/// numbers of a page fall, which is checked: an import may have mixed them.
pub(crate) async fn is_listed(
    context: &Context,
    wanted: Wanted<'_>,
) -> Result<Option<bool>, ApiError> {
    let Some(first) = page(context, wanted, 1).await? else { return Ok(None) };
    let Some(total) = first.total else { return Ok(None) };
    if first.numbers.is_empty() && !wanted.is_named {
        return Ok(None);
    }
    // A page may be clamped, and the last one is short.
    let size = first.numbers.len() as u64;
    let (mut low, mut high) = (1, total.div_ceil(size.max(1)).max(1));
    let mut at = first;
    for _ in 0..MAX_REQUESTS {
        match at.place(wanted.number) {
            Some(Place::Here) => return Ok(Some(true)),
            Some(Place::Between) => return Ok(Some(false)),
            Some(Place::Before) if at.page <= low => return Ok(Some(false)),
            Some(Place::Before) => high = at.page - 1,
            Some(Place::After) if at.page >= high => return Ok(Some(false)),
            Some(Place::After) => low = at.page + 1,
            None => return Ok(None),
        }
        let Some(next) = page(context, wanted, low + (high - low) / 2).await? else {
            return Ok(None);
        };
        at = next;
    }
    Ok(None)
}

/// Where a number is, as seen from a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Here,
    /// It would be on this page, and is not.
    Between,
    Before,
    After,
}

/// The numbers on a page, in their order.
struct Page {
    page: u64,
    numbers: Vec<u64>,
    total: Option<u64>,
}

impl Page {
    /// None if the numbers do not fall.
    fn place(&self, number: u64) -> Option<Place> {
        if !self.numbers.is_sorted_by(|a, b| a > b) {
            return None;
        }
        let (Some(first), Some(last)) = (self.numbers.first(), self.numbers.last()) else {
            // Past the end.
            return Some(Place::Before);
        };
        Some(if self.numbers.contains(&number) {
            Place::Here
        } else if number > *first {
            Place::Before
        } else if number < *last {
            Place::After
        } else {
            Place::Between
        })
    }
}

/// A page of the repository's list. None if it cannot be had, or is another repository's.
async fn page(context: &Context, wanted: Wanted<'_>, page: u64) -> Result<Option<Page>, ApiError> {
    let Ok(number) = u32::try_from(page) else { return Ok(None) };
    let query = IssueQuery { page: number, limit: PAGE, ..IssueQuery::default() };
    let (mut numbers, mut is_another) = (Vec::new(), false);
    let request =
        context.client.repository_issues(wanted.owner, wanted.repository, &query, |line| {
            is_another |= line.repository.id != wanted.repository_id;
            numbers.push(line.number);
        });
    let answer = match request.await {
        Ok(answer) => answer.value,
        Err(ApiError::NotFound { .. } | ApiError::Forbidden { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_whole = answer.unreadable == 0 && !is_another;
    Ok(is_whole.then_some(Page { page, numbers, total: answer.total }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_its_place_while_the_numbers_fall() {
        for (numbers, number, expected) in [
            (&[9, 7, 4][..], 7, Some(Place::Here)),
            (&[9, 7, 4], 8, Some(Place::Between)),
            (&[9, 7, 4], 10, Some(Place::Before)),
            (&[9, 7, 4], 3, Some(Place::After)),
            (&[], 3, Some(Place::Before)),
            (&[4, 9], 3, None),
            (&[4, 4], 3, None),
        ] {
            let page = Page { page: 1, numbers: numbers.to_vec(), total: None };
            assert_eq!(page.place(number), expected, "{numbers:?} {number}");
        }
    }
}
