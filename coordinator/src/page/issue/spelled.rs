//! Finds an issue whose repository is spelled otherwise: the letters' case counts in subjects, and not
//! in Gitea's names.

use contract::{
    names::{CHANGES, EVENTS},
    subject,
};

use super::{
    super::reads::{ReadError, Reads},
    Place,
};

/// The issue as events or changes spell it, unless that is how it is spelled here.
pub(super) async fn elsewhere(reads: &Reads, place: &Place) -> Result<Option<Place>, ReadError> {
    let is_it = |subject: &str| is_meant(place, subject);
    for (stream, filter) in [EVENTS, CHANGES].iter().zip(subject::number_filters(place.number)) {
        if reads.info(stream).await?.is_none() {
            continue;
        }
        if let Some(found) = reads.find_subject(stream, &filter, is_it).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The issue of a subject, if it is the same in other letters.
fn is_meant(place: &Place, subject: &str) -> Option<Place> {
    let (owner, repository, number) = subject::issue_of(subject)?;
    let found = Place { owner, repository, number };
    let is_same = |one: &str, other: &str| one.to_lowercase() == other.to_lowercase();
    let is_meant = found.number == place.number
        && is_same(&found.owner, &place.owner)
        && is_same(&found.repository, &place.repository);
    (is_meant && found != *place).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_case_of_letters_may_differ() {
        let place = |owner: &str, repository: &str| Place {
            owner: owner.into(),
            repository: repository.into(),
            number: 7,
        };
        let sought = place("ACME", "Ärger.x");
        for (subject, expected) in [
            ("gitea.issues.assigned.acme.%C3%A4rger%2Ex.7.3", Some(place("acme", "ärger.x"))),
            ("gitea.changes.assigned.acme.%C3%84rger%2Ex.7", Some(place("acme", "Ärger.x"))),
            ("gitea.changes.assigned.ACME.%C3%84rger%2Ex.7", None),
            ("gitea.changes.assigned.acme.rger%2Ex.7", None),
            ("gitea.changes.assigned.acme.%C3%A4rger%2Ex.8", None),
            ("gitea.changes", None),
        ] {
            assert_eq!(is_meant(&sought, subject), expected, "{subject}");
        }
    }
}
