//! People.

use serde::{Deserialize, Deserializer};

/// Someone with an account, or who had one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    /// Number of the account. It stays when the login changes.
    pub id: i64,
    /// Login name, for people to read.
    pub login: String,
}

impl User {
    /// Whom Gitea names in place of a deleted account.
    pub fn ghost() -> Self {
        Self { id: -1, login: "Ghost".to_owned() }
    }
}

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Written {
            id: i64,
            #[serde(default)]
            login: Option<String>,
            /// The login, as old versions name it.
            #[serde(default)]
            username: Option<String>,
        }
        let written = Written::deserialize(deserializer)?;
        let login = written.login.filter(|login| !login.is_empty()).or(written.username);
        Ok(Self { id: written.id, login: login.unwrap_or_default() })
    }
}

/// The account of a token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// Whose token it is.
    #[serde(flatten)]
    pub user: User,
    /// Whether it may see all that Gitea has.
    #[serde(default, deserialize_with = "crate::fields::or_default")]
    pub is_admin: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_have_two_names() {
        for (json, login) in [
            (r#"{"id":3,"login":"bot","username":"old"}"#, "bot"),
            (r#"{"id":3,"login":"","username":"bot"}"#, "bot"),
            (r#"{"id":3,"username":"bot"}"#, "bot"),
            (r#"{"id":3,"login":null}"#, ""),
        ] {
            let user: User = serde_json::from_str(json).unwrap();
            assert_eq!((user.id, user.login.as_str()), (3, login), "{json}");
        }
        assert!(serde_json::from_str::<User>(r#"{"login":"bot"}"#).is_err());
    }
}
