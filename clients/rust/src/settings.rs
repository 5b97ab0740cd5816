//! Where the broker is, and who we are to it.

use std::{fmt, path::PathBuf};

use async_nats::ServerAddr;

use crate::Error;

/// How to reach the broker. Files are read at each connection, so that what is in them may change.
#[derive(Clone)]
pub struct Settings {
    /// `nats://` or `tls://`; several servers of a cluster with commas between. It may hold user and
    /// password, or a token.
    pub url: String,
    /// User.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// A file with the password. White space around it is ignored.
    pub password_file: Option<PathBuf>,
    /// A token in place of user and password.
    pub token: Option<String>,
    /// A credentials file with a JWT and its key.
    pub creds_file: Option<PathBuf>,
    /// Authorities to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Certificate that we show.
    pub cert_file: Option<PathBuf>,
    /// Key of that certificate.
    pub key_file: Option<PathBuf>,
    /// Prefix of reply subjects, where this user may subscribe to no other.
    pub inbox_prefix: Option<String>,
    /// Name of the connection, as the broker shows it.
    pub name: String,
}

impl Settings {
    /// Settings for this URL alone.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            password_file: None,
            token: None,
            creds_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            inbox_prefix: None,
            name: "coordinator-client".into(),
        }
    }

    /// With a user, whose password is in a file.
    pub fn login(mut self, user: impl Into<String>, password_file: impl Into<PathBuf>) -> Self {
        self.user = Some(user.into());
        self.password_file = Some(password_file.into());
        self
    }

    /// Settings under the names that Coordinator itself has: `NATS_URL`, `NATS_USER`,
    /// `NATS_PASSWORD` or `NATS_PASSWORD_FILE`, `NATS_CREDS_FILE`, `NATS_CA_FILE`, `NATS_CERT_FILE`,
    /// `NATS_KEY_FILE`, `NATS_INBOX_PREFIX`. Empty ones count as not set. For a whole environment:
    /// `Settings::from_variables(std::env::vars())`.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut found = Self::default();
        for (name, value) in variables {
            if value.is_empty() {
                continue;
            }
            match name.as_str() {
                "NATS_URL" => found.url = value,
                "NATS_USER" => found.user = Some(value),
                "NATS_PASSWORD" => found.password = Some(value),
                "NATS_PASSWORD_FILE" => found.password_file = Some(value.into()),
                "NATS_CREDS_FILE" => found.creds_file = Some(value.into()),
                "NATS_CA_FILE" => found.ca_file = Some(value.into()),
                "NATS_CERT_FILE" => found.cert_file = Some(value.into()),
                "NATS_KEY_FILE" => found.key_file = Some(value.into()),
                "NATS_INBOX_PREFIX" => found.inbox_prefix = Some(value),
                _ => {}
            }
        }
        found
    }

    /// The servers, if all settings fit together.
    pub(crate) fn servers(&self) -> Result<Vec<ServerAddr>, Error> {
        let wrong = |text: &str| Err(Error::Settings(text.into()));
        if self.password.is_some() && self.password_file.is_some() {
            return wrong("password and password_file exclude each other");
        }
        if (self.password.is_some() || self.password_file.is_some()) && self.user.is_none() {
            return wrong("a password needs a user");
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return wrong("cert_file and key_file belong together");
        }
        let servers: Result<Vec<ServerAddr>, _> =
            self.url.split(',').map(|server| server.trim().parse()).collect();
        match servers {
            Ok(servers) if servers.iter().all(|server| !server.host().is_empty()) => Ok(servers),
            // The error of the client would show a password.
            _ => wrong("the URL of a server is not nats://host:port or tls://host:port"),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new("nats://127.0.0.1:4222")
    }
}

/// Shows no secret.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("user", &self.user)
            .field("password_file", &self.password_file)
            .field("creds_file", &self.creds_file)
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_fit_together_are_refused() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.servers().map(|servers| servers.len())
        };
        assert_eq!(with(|s| s.url = "nats://a:1, tls://b".into()).expect("servers"), 2);
        for change in [
            (|s| s.url = "http://a".into()) as fn(&mut Settings),
            |s| s.url = String::new(),
            |s| s.password = Some("p".into()),
            |s| s.cert_file = Some("c".into()),
            |s| {
                *s = s.clone().login("u", "file");
                s.password = Some("p".into());
            },
        ] {
            assert!(matches!(with(change), Err(Error::Settings(_))));
        }
    }

    #[test]
    fn variables_have_the_names_of_coordinator_and_no_secret_is_shown() {
        let variables = [("NATS_URL", "nats://u:secret@h"), ("NATS_USER", ""), ("OTHER", "x")];
        let settings =
            Settings::from_variables(variables.map(|(name, value)| (name.into(), value.into())));
        assert_eq!((settings.url.as_str(), &settings.user), ("nats://u:secret@h", &None));
        assert!(!format!("{settings:?}").contains("secret"));
    }
}
