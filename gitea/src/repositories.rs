//! Repositories.

use serde::{Deserialize, Deserializer};

use crate::{
    answer::Answer,
    client::{Client, Question},
    error::ApiError,
    fields,
    users::User,
};

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Repository {
    /// Number of the repository. It stays when the name or the owner changes.
    pub id: i64,
    /// Its owner.
    pub owner: User,
    /// Its name.
    pub name: String,
    /// Its page.
    #[serde(default, deserialize_with = "fields::or_default")]
    pub html_url: String,
    /// It has no commits. The test of a hook sends nothing then.
    #[serde(default, rename = "empty", deserialize_with = "fields::or_default")]
    pub is_empty: bool,
    /// It can only be read.
    #[serde(default, rename = "archived", deserialize_with = "fields::or_default")]
    pub is_archived: bool,
    /// Its issues are kept here, and not elsewhere or nowhere.
    #[serde(default, deserialize_with = "fields::or_default")]
    pub has_issues: bool,
    /// The token's user administers it, as hooks need.
    #[serde(default, rename = "permissions", deserialize_with = "is_admin")]
    pub is_admin: bool,
}

fn is_admin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    struct Permissions {
        #[serde(default)]
        admin: bool,
    }
    Ok(Option::<Permissions>::deserialize(deserializer)?.is_some_and(|it| it.admin))
}

impl Client {
    /// A repository by its number, which a new name or owner leaves as it is. Needs
    /// `read:repository`.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn repository(&self, id: i64) -> Result<Answer<Repository>, ApiError> {
        self.one(Question::get("repository", &["repositories", &id.to_string()])).await
    }

    /// A repository by its name. Follows the redirects of a new one. Needs `read:repository`.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn repository_by_name(
        &self,
        owner: &str,
        repository: &str,
    ) -> Result<Answer<Repository>, ApiError> {
        self.one(Question::get("repository_by_name", &["repos", owner, repository])).await
    }

    /// A page of the repositories of a user or an organisation, from 1. It may be short, or empty,
    /// though others follow: Gitea takes out what the token may not read after it has cut the
    /// page. [`Answer::total`] counts those as well. Needs `read:user` and `read:repository`.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn repositories_of(
        &self,
        owner: &str,
        page: u32,
    ) -> Result<Answer<Vec<Repository>>, ApiError> {
        // Gitea knows organisations as users here, and asks for no scope of organisations.
        let path = ["users", owner, "repos"];
        let query = [("page", page.to_string()), ("limit", "50".to_owned())];
        self.list(Question::get("repositories_of", &path).with(&query)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::{Reply, Responder};

    #[tokio::test]
    async fn recorded_answers_are_read() {
        let gitea = Responder::start(|asked| {
            let body: &[u8] = match asked.line.as_str() {
                "GET /api/v1/repos/acme/widgets" => include_bytes!("../fixtures/repo.body"),
                "GET /api/v1/repositories/1" => include_bytes!("../fixtures/repo-by-id.body"),
                "GET /api/v1/users/acme/repos?page=2&limit=50" => {
                    include_bytes!("../fixtures/org-repos-1.25.body")
                }
                _ => {
                    let body: &[u8] = include_bytes!("../fixtures/repo-by-id-missing.body");
                    return Reply::new(404, body);
                }
            };
            Reply::new(200, body).with("X-Total-Count", "3")
        })
        .await;
        let client = gitea.client();
        let expected = Repository {
            id: 1,
            owner: User { id: 5, login: "acme".to_owned() },
            name: "widgets".to_owned(),
            html_url: "http://localhost:3127/acme/widgets".to_owned(),
            is_empty: false,
            is_archived: false,
            has_issues: true,
            is_admin: true,
        };
        assert_eq!(client.repository_by_name("acme", "widgets").await.unwrap().value, expected);
        let by_id = client.repository(1).await.unwrap().value;
        assert_eq!((by_id.id, by_id.owner.login), (1, "acme".to_owned()));
        let page = client.repositories_of("acme", 2).await.unwrap();
        assert_eq!(page.total, Some(3));
        assert!(page.value.iter().all(|repository| repository.owner.login == "acme"));
        assert!(!page.value.is_empty());
        let error = client.repository(99999).await.unwrap_err();
        assert!(matches!(error, ApiError::NotFound { is_giteas: true }), "{error:?}");
    }

    #[test]
    fn missing_fields_are_the_least() {
        let body = r#"{"id":1,"owner":{"id":5},"name":"x","permissions":null,"has_issues":null}"#;
        let repository: Repository = serde_json::from_str(body).unwrap();
        assert!(!repository.has_issues && !repository.is_admin && !repository.is_empty);
    }
}
