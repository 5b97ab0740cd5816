//! What a client is made from.

use std::{fmt, sync::Arc, time::Duration};

use crate::observer::Observer;

/// An access token of Gitea. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a token.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    /// The token itself. The name draws attention to every use.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where Gitea is, and how much may be asked of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address of Gitea, `http` or `https`, without credentials. A path is kept: Gitea may live
    /// below one.
    pub url: String,
    /// Without a token, only what is public can be read.
    pub token: Option<Token>,
    /// Requests a second, over time. A second's worth may be made at once after a pause.
    pub per_second: f64,
    /// Requests under way at the same time.
    pub at_once: usize,
    /// How long one request may take, until the end of its answer. Waiting for a place in the
    /// budget does not count.
    pub deadline: Duration,
    /// The header `User-Agent`.
    pub user_agent: String,
    /// Told of each request.
    pub observer: Arc<dyn Observer>,
}

#[cfg(test)]
mod tests {
    use crate::responder::{TOKEN, options};

    #[test]
    fn a_token_is_never_printed() {
        let options = options("http://h");
        let text = format!("{options:?} {:?}", crate::Client::new(options.clone()).unwrap());
        assert!(text.contains("Token(…)"), "{text}");
        assert!(!text.contains(TOKEN), "{text}");
    }
}
