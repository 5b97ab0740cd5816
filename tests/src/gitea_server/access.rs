//! Tokens, their scopes, and who may see and do what.

use super::{
    GiteaServer,
    reply::Refusal,
    world::{Account, Repository, World},
};

/// A token of a user.
#[derive(Debug)]
pub(super) struct Token {
    pub name: String,
    pub user: i64,
    pub scopes: Vec<String>,
}

/// Whoever asks: a user with a token, or nobody known.
#[derive(Clone, Copy)]
pub(super) struct Viewer<'a> {
    pub user: Option<&'a Account>,
    scopes: &'a [String],
}

/// What a request needs of a token's scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl GiteaServer {
    /// Makes a token of a user and returns its secret. Scopes are as Gitea writes them:
    /// `read:issue`, `write:repository`, `all`.
    pub fn add_token(&self, name: &str, login: &str, scopes: &[&str]) -> String {
        let secret: String =
            std::iter::repeat_with(|| fastrand::char('a'..='f')).take(40).collect();
        self.change(|world| {
            let mut scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
            scopes.sort();
            let token = Token { name: name.to_owned(), user: world.id_of(login), scopes };
            world.tokens.insert(secret.clone(), token);
        });
        secret
    }

    /// Revokes all tokens of this name.
    pub fn revoke_token(&self, name: &str) {
        self.change(|world| world.tokens.retain(|_, token| token.name != name));
    }
}

/// The token in a header `Authorization`.
pub(super) fn secret_in(authorization: &str) -> Option<&str> {
    let (scheme, secret) = authorization.split_once(' ')?;
    let known = ["token", "bearer"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    known.then(|| secret.trim())
}

/// The refusal of a token that Gitea does not have.
pub(super) fn bad_token() -> Refusal {
    Refusal::unauthorized("invalid username, password or token")
}

impl World {
    /// The name of a token, for a report that must not hold the token.
    pub fn token_name(&self, secret: &str) -> String {
        self.tokens.get(secret).map_or("unknown", |token| &token.name).to_owned()
    }

    /// Whoever has this token.
    pub fn viewer(&self, secret: Option<&str>) -> Result<Viewer<'_>, Refusal> {
        let Some(secret) = secret else { return Ok(Viewer::reader(None)) };
        let token = self.tokens.get(secret).ok_or_else(bad_token)?;
        Ok(Viewer { user: self.accounts.get(&token.user), scopes: &token.scopes })
    }

    /// Whether somebody owns an account: is it, or an owner of the organisation.
    fn owns(&self, user: &Account, owner: i64) -> bool {
        user.id == owner || self.accounts[&owner].members.contains(&user.id)
    }
}

impl<'a> Viewer<'a> {
    /// A user for whom something is written, and who asks for nothing.
    pub fn reader(user: Option<&'a Account>) -> Self {
        Self { user, scopes: &[] }
    }

    /// Refuses a token without the scope. Somebody without a token needs none.
    pub fn needs(&self, access: Access, category: &str) -> Result<(), Refusal> {
        let (read, write) = (format!("read:{category}"), format!("write:{category}"));
        let has = |wanted: &str| self.scopes.iter().any(|scope| scope == wanted);
        let fits = has("all") || has(&write) || access == Access::Read && has(&read);
        if self.user.is_none() || fits {
            return Ok(());
        }
        let required = if access == Access::Read { read } else { write };
        let scopes = self.scopes.join(",");
        Err(Refusal::forbidden(&format!(
            "token does not have at least one of required scope(s), \
             required=[{required}], token scope={scopes}"
        )))
    }

    /// The user, where only a user may ask.
    pub fn signed_in(&self) -> Result<&'a Account, Refusal> {
        self.user.ok_or_else(|| Refusal::unauthorized("token is required"))
    }

    pub fn is_admin(&self) -> bool {
        self.user.is_some_and(|user| user.is_admin)
    }

    /// Whether the repository may be seen.
    pub fn reads(&self, world: &World, repository: &Repository) -> bool {
        let takes_part = |user: &Account| repository.collaborators.contains(&user.id);
        !repository.private
            || self.administers(world, repository)
            || self.user.is_some_and(takes_part)
    }

    /// Whether the repository's settings may be changed.
    pub fn administers(&self, world: &World, repository: &Repository) -> bool {
        self.is_admin() || self.user.is_some_and(|user| world.owns(user, repository.owner))
    }

    /// Whether an account's settings may be changed.
    pub fn owns(&self, world: &World, owner: i64) -> bool {
        self.is_admin() || self.user.is_some_and(|user| world.owns(user, owner))
    }
}
