//! Settings: clap takes each as text from a flag or the environment. All of them
//! are checked together, so that one line names everything that is wrong.
//!
//! A setting is one line of a [`settings!`](crate::settings!) block, in the module
//! that uses it.

mod file;
mod show;
mod strength;
mod url;

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    time::Duration,
};

use thiserror::Error;

use crate::secret::Secret;

pub use self::{
    file::{certificates, credentials, directory, path, private_key, read_file},
    show::{Show, Shown},
    url::{TRACE_ID, http_address, http_url, is_loopback, otlp_endpoint, trace_url},
};

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

/// Reads an address to listen on. An IPv6 address may have the brackets that it has in a URL.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bracketed {
        Some(text) => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        // Resolvers may answer with ::1 first, which IPv4 clients do not reach.
        None if text.eq_ignore_ascii_case("localhost") => Some(Ipv4Addr::LOCALHOST.into()),
        None => text.parse().ok(),
    };
    address.ok_or_else(|| "is not an IP address or localhost".into())
}

/// Reads a port.
pub fn port(text: &str) -> Result<u16, String> {
    if text.contains("://") {
        // Kubernetes sets `X_PORT=tcp://10.0.0.1:80` in each pod beside a Service with the name x.
        return Err("is a URL, as Kubernetes sets it for a Service of that name; \
                    set enableServiceLinks: false for the pod, or a port here"
            .into());
    }
    of("a port")(text)
}

/// Reads a switch.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is not true or false".into()),
    }
}

/// Reads a secret.
pub fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text))
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
        #[derive(clap::Args, Clone, Default)]
        #[group(skip)]
        pub struct $args {
            $(
                #[doc = $help]
                #[arg(
                    long, env = $name, value_name = "VALUE", hide_env_values = true,
                    // Everybody on the machine sees the flags of a process.
                    hide = stringify!($type).contains("Secret"),
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

        /// Names what is set. A text may be a secret, or hold one.
        impl std::fmt::Debug for $args {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut set = f.debug_struct(stringify!($args));
                $( if $crate::settings::text(&self.$flag).is_some() {
                    set.field($name, &format_args!("(set)"));
                } )*
                set.finish()
            }
        }

        impl $args {
            /// Each setting as it is understood, with its default where it is unset or wrong.
            pub fn shown(&self) -> Vec<$crate::settings::Shown> {
                let values = self.check(&mut $crate::settings::Problems::default());
                vec![ $( $crate::settings::Shown::new($name, &values.$flag), )* ]
            }

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
            key: Option<Secret> = "KEY", secret, "What is not shown";
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
        let (host, wait_secs, url) = (some("h"), some("10"), some("ftp://h"));
        let args = TestArgs { host, wait_secs, url, key: None };
        let _ = args.check(&mut problems);
        assert_eq!(
            problems.finish(()).expect_err("all of it is wrong").to_string(),
            "HOST is not an IP address or localhost; WAIT_SECS is not a number from 1 to 9; \
             URL is not an http:// or https:// URL"
        );
    }

    #[test]
    fn an_address_is_read_in_each_form_that_people_write() {
        for (text, expected) in [
            ("0.0.0.0", Some("0.0.0.0")),
            ("localhost", Some("127.0.0.1")),
            ("LocalHost", Some("127.0.0.1")),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("[::]", Some("::")),
            ("[127.0.0.1]", None),
            ("[::1", None),
            ("::1]", None),
            ("127.0.0.1:8000", None),
            ("[::1]:8000", None),
            ("example.com", None),
        ] {
            let read = address(text).ok().map(|address| address.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_port_of_kubernetes_own_variables_is_told_with_the_remedy() {
        for (text, expected) in [
            ("8000", Ok(8000)),
            ("0", Ok(0)),
            ("65536", Err("is not a port")),
            ("http", Err("is not a port")),
            ("tcp://10.0.0.1:4222", Err("enableServiceLinks: false")),
            ("udp://10.0.0.1:53", Err("enableServiceLinks: false")),
        ] {
            match (port(text), expected) {
                (Ok(port), Ok(expected)) => assert_eq!(port, expected),
                (Err(problem), Err(part)) => assert!(problem.contains(part), "{problem}"),
                (read, _) => panic!("{text}: {read:?}"),
            }
        }
    }

    #[test]
    fn a_text_is_never_printed_since_it_may_be_a_secret() {
        let args = TestArgs { url: some("https://h/s3cr3t"), ..TestArgs::default() };
        assert_eq!(format!("{args:?}"), "TestArgs { URL: (set) }");
    }

    #[test]
    fn each_setting_is_shown_as_it_is_understood() {
        let args = TestArgs { wait_secs: some("3"), ..TestArgs::default() };
        let lines: Vec<_> = args.shown().iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["HOST=0.0.0.0", "WAIT_SECS=3", "URL=", "KEY="]);
        let args = TestArgs { key: some("s3cr3t"), ..TestArgs::default() };
        assert_eq!(args.shown()[3].to_string(), "KEY=(hidden)");
    }
}
