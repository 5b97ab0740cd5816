//! Says what lacks when Gitea refuses something: a scope of the token, or a permission of its user.

use gitea::{ApiError, HookScope};

/// What Gitea was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked<'a> {
    HooksOf(&'a HookScope),
    /// Of this owner.
    RepositoriesOf(&'a str),
}

/// An error of `operation`, with what to do about it.
pub(super) fn explained(operation: &str, asked: Asked<'_>, error: ApiError) -> anyhow::Error {
    let context = match remedy(&error, asked) {
        Some(remedy) => format!("{operation}: {remedy}"),
        None => operation.to_owned(),
    };
    anyhow::Error::new(error).context(context)
}

/// Whose hooks these are, for people.
pub(super) fn name(scope: &HookScope) -> String {
    match scope {
        HookScope::Repository { owner, repo } => format!("{owner}/{repo}"),
        HookScope::Organization(name) => format!("the organisation {name}"),
        HookScope::User => "the token's user".into(),
        HookScope::System => "the whole site".into(),
    }
}

/// What a token needs. What may be written may be read.
fn token_scope(asked: Asked<'_>) -> &'static str {
    match asked {
        Asked::RepositoriesOf(_) => "scopes read:user and write:repository",
        Asked::HooksOf(HookScope::Repository { .. }) => "scope write:repository",
        Asked::HooksOf(HookScope::Organization(_)) => "scope write:organization",
        Asked::HooksOf(HookScope::User) => "scope write:user",
        Asked::HooksOf(HookScope::System) => "scope write:admin",
    }
}

/// What the token's user needs, beside the scope. None: nothing.
fn permission(asked: Asked<'_>) -> Option<&'static str> {
    Some(match asked {
        Asked::HooksOf(HookScope::Repository { .. }) => "own the repository or to administer it",
        Asked::HooksOf(HookScope::Organization(_)) => "be an owner of the organisation",
        Asked::HooksOf(HookScope::System) => "be an administrator of Gitea",
        Asked::HooksOf(HookScope::User) | Asked::RepositoriesOf(_) => return None,
    })
}

fn remedy(error: &ApiError, asked: Asked<'_>) -> Option<String> {
    Some(match error {
        ApiError::Unauthorized { .. } => {
            "GITEA_TOKEN is no token of this Gitea, or was revoked".into()
        }
        ApiError::Forbidden { required, present, .. } if !required.is_empty() => {
            let present = match &present[..] {
                [] => String::new(),
                present => format!(", and has {}", present.join(", ")),
            };
            format!("the token needs the {}{present}", token_scope(asked))
        }
        ApiError::Forbidden { .. } => format!("the token's user has to {}", permission(asked)?),
        ApiError::NotFound { is_giteas: false } => {
            "what answers there is not Gitea's API; check GITEA_URL".into()
        }
        ApiError::NotFound { .. } => match asked {
            Asked::HooksOf(HookScope::Repository { owner, repo }) => format!(
                "there is no repository {owner}/{repo}, or the token's user may not see it, as it \
                 is with private ones of others"
            ),
            Asked::HooksOf(HookScope::Organization(name)) => format!(
                "there is no organisation {name} that the token's user may see; for a user's \
                 repositories there are --user and --all-repos-of"
            ),
            Asked::RepositoriesOf(owner) => {
                format!("there is no user or organisation {owner} that the token's user may see")
            }
            Asked::HooksOf(HookScope::User | HookScope::System) => return None,
        },
        ApiError::MovedElsewhere { origin } if !origin.is_empty() => {
            format!("set GITEA_URL to where Gitea is, perhaps {origin}")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_is_named() {
        let repository =
            HookScope::Repository { owner: "acme".to_owned(), repo: "widgets".to_owned() };
        let organization = HookScope::Organization("acme".to_owned());
        let no_scope = || ApiError::Forbidden {
            message: "no".to_owned(),
            required: vec!["read:repository".to_owned()],
            present: vec!["read:issue".to_owned()],
        };
        let no_right = || ApiError::Forbidden {
            message: "no".to_owned(),
            required: Vec::new(),
            present: Vec::new(),
        };
        let not_found = |is_giteas| ApiError::NotFound { is_giteas };
        let (repository, organization) =
            (Asked::HooksOf(&repository), Asked::HooksOf(&organization));
        let (user, system) = (Asked::HooksOf(&HookScope::User), Asked::HooksOf(&HookScope::System));
        let repositories = Asked::RepositoriesOf("acme");
        for (asked, error, expected) in [
            (repositories, no_scope(), "needs the scopes read:user and write:repository, and has"),
            (repositories, not_found(true), "no user or organisation acme"),
            (repository, no_scope(), "needs the scope write:repository, and has read:issue"),
            (organization, no_scope(), "needs the scope write:organization"),
            (user, no_scope(), "needs the scope write:user"),
            (system, no_scope(), "needs the scope write:admin"),
            (repository, no_right(), "own the repository or to administer it"),
            (organization, no_right(), "an owner of the organisation"),
            (system, no_right(), "an administrator of Gitea"),
            (user, no_right(), "list hooks: Gitea forbids it (403)"),
            (repository, not_found(true), "no repository acme/widgets, or"),
            (organization, not_found(true), "no organisation acme"),
            (repository, not_found(false), "check GITEA_URL"),
            (
                repository,
                ApiError::Unauthorized { message: "no".to_owned() },
                "no token of this Gitea, or was revoked",
            ),
            (
                repository,
                ApiError::MovedElsewhere { origin: "https://g".to_owned() },
                "perhaps https://g",
            ),
        ] {
            let text = format!("{:#}", explained("list hooks", asked, error));
            assert!(text.starts_with("list hooks: ") && text.contains(expected), "{text}");
        }
    }
}
