//! What Gitea says of itself and of the token.

use serde::Deserialize;

use crate::{
    answer::Answer,
    client::{Client, Question},
    error::ApiError,
    users::Account,
};

/// Limits of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Limits {
    /// The most that a page holds. A larger `limit` is clamped without a word.
    pub max_response_items: u32,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

impl Client {
    /// The version of Gitea. Needs no scope.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn version(&self) -> Result<Answer<String>, ApiError> {
        let answer = self.one(Question::get("version", &["version"])).await?;
        Ok(answer.map(|it: Version| it.version))
    }

    /// The limits of the API. Needs no scope.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn limits(&self) -> Result<Answer<Limits>, ApiError> {
        self.one(Question::get("limits", &["settings", "api"])).await
    }

    /// The account of the token. Needs `read:user`.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn user(&self) -> Result<Answer<Account>, ApiError> {
        self.one(Question::get("user", &["user"])).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{responder::Responder, users::User};

    #[tokio::test]
    async fn recorded_answers_are_read() {
        let gitea = Responder::start(|asked| {
            let body: &[u8] = match asked.line.as_str() {
                "GET /api/v1/version" => include_bytes!("../fixtures/version.body"),
                "GET /api/v1/settings/api" => include_bytes!("../fixtures/settings-api.body"),
                _ => include_bytes!("../fixtures/user.body"),
            };
            crate::responder::Reply::new(200, body).with("Date", "Thu, 26 Nov 2026 12:55:31 GMT")
        })
        .await;
        let client = gitea.client();
        let version = client.version().await.unwrap();
        assert_eq!(version.value, "development");
        assert_eq!(version.date.unwrap().unix_timestamp(), 1_795_697_731);
        assert_eq!(client.limits().await.unwrap().value.max_response_items, 50);
        let expected = Account { user: User { id: 1, login: "maria".to_owned() }, is_admin: true };
        assert_eq!(client.user().await.unwrap().value, expected);
        assert_eq!(gitea.lines()[2], "GET /api/v1/user");
        let asked = &gitea.asked()[0];
        assert!(asked.has_token(), "{asked:?}");
        assert_eq!(asked.headers["user-agent"], "test");
    }
}
