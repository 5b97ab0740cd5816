//! Fields of answers that Gitea leaves out, or sets to `null`.

use serde::{Deserialize, Deserializer, de};

use crate::users::User;

/// More entries than any list within an issue has. A list beyond is a broken answer.
const MOST_ENTRIES: usize = 10_000;

/// A value, or its default for `null`.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// People. `null` is nobody.
pub(crate) fn people<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<User>, D::Error> {
    list(deserializer, |user| user)
}

/// Names of labels.
pub(crate) fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    list(deserializer, |label: Named| label.name)
}

/// The title of a milestone.
pub(crate) fn title<'de, D>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<Titled>::deserialize(deserializer)?.map(|milestone| milestone.title))
}

/// Someone. An account that was deleted is `null`, or Gitea's Ghost.
pub(crate) fn someone<'de, D: Deserializer<'de>>(deserializer: D) -> Result<User, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(User::ghost))
}

/// Whether there is something, whatever it is.
pub(crate) fn is_some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<de::IgnoredAny>::deserialize(deserializer)?.is_some())
}

fn list<'de, D, T, U>(deserializer: D, of: impl Fn(T) -> U) -> Result<Vec<U>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let entries = Option::<Vec<Option<T>>>::deserialize(deserializer)?.unwrap_or_default();
    if entries.len() > MOST_ENTRIES {
        return Err(de::Error::custom("too many entries"));
    }
    Ok(entries.into_iter().flatten().map(of).collect())
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Titled {
    title: String,
}
