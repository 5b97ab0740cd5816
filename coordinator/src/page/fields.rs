//! Fields of a form or of a query.

/// Names and values in the order in which they were sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads `application/x-www-form-urlencoded`, which every text is.
    pub(super) fn parse(text: impl AsRef<[u8]>) -> Self {
        Self(form_urlencoded::parse(text.as_ref()).into_owned().collect())
    }

    /// The first value under `name`, without spaces around. Empty if there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        let first = self.0.iter().find(|(key, _)| key == name);
        first.map(|(_, value)| value.trim()).unwrap_or_default()
    }

    /// All values under `name`.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value under `name` as a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.get(name).parse().ok()
    }
}

/// A text as one segment of a path.
pub(super) fn segment(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A path with a query.
pub(super) fn link(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        query.append_pair(name, value);
    }
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_reads_back() {
        let path = link("/find", &[("q", "a&b=c %#+ é"), ("none", "")]);
        let query = path.strip_prefix("/find?").expect("a query");
        let fields = Fields::parse(query);
        assert_eq!((fields.get("q"), fields.get("none")), ("a&b=c %#+ é", ""));
        assert_eq!(link("/find", &[("q", "")]), "/find");
        assert_eq!(segment("a/b.c"), "a%2Fb%2Ec");
        let fields = Fields::parse("sequence=1&sequence=x&sequence=3&before= 7 ");
        assert_eq!(fields.all("sequence").collect::<Vec<_>>(), ["1", "x", "3"]);
        assert_eq!((fields.number("before"), fields.number("q")), (Some(7), None));
    }
}
