//! Settings: clap takes each as text from a flag or the environment. All of them
//! are checked together, so that one line names everything that is wrong.
//!
//! A setting is one line of a [`settings!`](crate::settings!) block, in the module
//! that uses it.

use std::{fmt::Display, net::IpAddr, str::FromStr, time::Duration};

use thiserror::Error;

/// Exit code for a setting that is missing or wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// All settings that are missing or wrong.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{}", .0.join("; "))]
pub struct SettingsError(pub Vec<String>);

/// Collects what is wrong with the settings while they are read.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Notes a problem.
    pub fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// The setting `name` as `read` reads it; `default` where it is unset or wrong.
    pub fn read<T>(
        &mut self,
        name: &str,
        value: &Option<String>,
        default: T,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        self.read_optional(name, value, read).unwrap_or(default)
    }

    /// The setting `name` as `read` reads it; None where it is unset or wrong.
    pub fn read_optional<T>(
        &mut self,
        name: &str,
        value: &Option<String>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        match read(text(value)?) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.add(format!("{name} {problem}"));
                None
            }
        }
    }

    /// The outcome: `value` if nothing was wrong.
    pub fn finish<T>(self, value: T) -> Result<T, SettingsError> {
        if self.0.is_empty() { Ok(value) } else { Err(SettingsError(self.0)) }
    }
}

/// A setting's text. Compose files set unset variables to nothing, so empty means unset.
pub fn text(value: &Option<String>) -> Option<&str> {
    value.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

/// Reads any text.
pub fn any(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Reads a `T`. `kind` names it in a problem.
pub fn of<T: FromStr>(kind: &'static str) -> impl Fn(&str) -> Result<T, String> {
    move |text| text.parse().map_err(|_| format!("is not {kind}"))
}

/// Reads an address to listen on.
pub fn address(text: &str) -> Result<IpAddr, String> {
    of("an IP address")(text)
}

/// Reads a port.
pub fn port(text: &str) -> Result<u16, String> {
    of("a port")(text)
}

/// Reads a number from `low` to `high`.
pub fn number<T>(low: T, high: T) -> impl Fn(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    move |text| match text.parse() {
        Ok(number) if number >= low && number <= high => Ok(number),
        _ => Err(format!("is not a number from {low} to {high}")),
    }
}

/// Reads a number of seconds from `low` to `high`.
pub fn secs(low: u64, high: u64) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| number(low, high)(text).map(Duration::from_secs)
}

/// Reads an http:// or https:// URL, without the slash at its end.
pub fn http_url(text: &str) -> Result<String, String> {
    let rest = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let is_url = rest.is_some_and(|rest| {
        rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            && !rest.contains(char::is_whitespace)
    });
    if is_url {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("is not an http:// or https:// URL".into())
    }
}

/// Declares settings, one per line: flag and type, environment variable, default if there is one,
/// the function that reads the text, and the help text. Generates two structs: the texts as they
/// are given, and the values. The method `check` makes the second from the first.
#[macro_export]
macro_rules! settings {
    (
        $(#[$about:meta])*
        pub struct $args:ident => $values:ident {
            $( $flag:ident: $type:ty = $name:literal $(or $shown:literal = $default:expr)?,
               $read:expr, $help:literal; )*
        }
    ) => {
        $(#[$about])*
        ///
        /// As given: texts.
        #[derive(clap::Args, Clone, Debug, Default)]
        #[group(skip)]
        pub struct $args {
            $(
                #[doc = $help]
                #[arg(
                    long, env = $name, value_name = "VALUE", hide_env_values = true,
                    help = concat!($help $(, " [default: ", $shown, "]")?)
                )]
                pub $flag: Option<String>,
            )*
        }

        $(#[$about])*
        ///
        /// Checked.
        #[derive(Clone, Debug)]
        pub struct $values {
            $(
                #[doc = $help]
                pub $flag: $type,
            )*
        }

        impl $args {
            /// Checks each setting by itself and notes in `problems` what is wrong.
            pub fn check(&self, problems: &mut $crate::settings::Problems) -> $values {
                $values {
                    $( $flag: $crate::settings!(
                        @read problems, $name, &self.$flag, $read $(, $default)?
                    ), )*
                }
            }
        }
    };
    (@read $problems:ident, $name:literal, $value:expr, $read:expr, $default:expr) => {
        $problems.read($name, $value, $default, $read)
    };
    (@read $problems:ident, $name:literal, $value:expr, $read:expr) => {
        $problems.read_optional($name, $value, $read)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::settings! {
        /// Settings of a test.
        pub struct TestArgs => TestSettings {
            host: IpAddr = "HOST" or "0.0.0.0" = [0, 0, 0, 0].into(), address, "Where";
            wait_secs: Duration = "WAIT_SECS" or "7" = Duration::from_secs(7), secs(1, 9), "How long";
            url: Option<String> = "URL", http_url, "Which";
        }
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn what_is_unset_or_empty_has_its_default() {
        let mut problems = Problems::default();
        let args = TestArgs { host: some(" "), url: some("https://h/"), ..TestArgs::default() };
        let settings = args.check(&mut problems);
        assert_eq!(problems.finish(()), Ok(()));
        assert_eq!(settings.host, IpAddr::from([0, 0, 0, 0]));
        assert_eq!(settings.wait_secs, Duration::from_secs(7));
        assert_eq!(settings.url.as_deref(), Some("https://h"));
    }

    #[test]
    fn one_line_names_everything_that_is_wrong() {
        let mut problems = Problems::default();
        let args = TestArgs { host: some("h"), wait_secs: some("10"), url: some("ftp://h") };
        let _ = args.check(&mut problems);
        assert_eq!(
            problems.finish(()).expect_err("all of it is wrong").to_string(),
            "HOST is not an IP address; WAIT_SECS is not a number from 1 to 9; \
             URL is not an http:// or https:// URL"
        );
    }

    #[test]
    fn urls_are_told_from_other_texts() {
        for (text, good) in [
            ("http://h", true),
            ("https://[::1]:3000/x/", true),
            ("http://", false),
            ("http:// h", false),
            ("h:3000", false),
        ] {
            assert_eq!(http_url(text).is_ok(), good, "{text}");
        }
    }
}
