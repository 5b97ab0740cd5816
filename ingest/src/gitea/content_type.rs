//! The content type of a delivery. It determines where in the body the signed text is.

/// The two content types of Gitea's webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentType {
    /// The body is the JSON text.
    Json,
    /// The body is `payload=<urlencoded JSON text>`. The signature covers the decoded text.
    Form,
}

impl ContentType {
    /// Parameters, such as a charset, are ignored.
    pub(super) fn of(value: &str) -> Option<Self> {
        match value.split(';').next().unwrap_or_default().trim() {
            json if json.eq_ignore_ascii_case("application/json") => Some(Self::Json),
            form if form.eq_ignore_ascii_case("application/x-www-form-urlencoded") => {
                Some(Self::Form)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_of_gitea_are_taken_and_others_are_not() {
        for (value, expected) in [
            ("application/json", Some(ContentType::Json)),
            ("Application/JSON; charset=utf-8", Some(ContentType::Json)),
            ("application/x-www-form-urlencoded", Some(ContentType::Form)),
            ("text/plain", None),
            ("application/jsonx", None),
            ("", None),
        ] {
            assert_eq!(ContentType::of(value), expected, "{value:?}");
        }
    }
}
