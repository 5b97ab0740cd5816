//! The style sheet, the script and the icon. Their addresses hold a hash of their content, so that a browser
//! keeps them and takes new ones at once.

use std::sync::LazyLock;

use axum::{
    http::{
        HeaderName, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

const CSS: &str = include_str!("page.css");
const JS: &str = include_str!("page.js");
const ICON: &str = concat!(
    r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" "#,
    r##"fill="#0b5cad"/><path d="M3 8h4m2 0h4M8 3v10" stroke="#fff" stroke-width="2"/></svg>"##
);

/// Address of the style sheet.
pub(super) static CSS_ADDRESS: LazyLock<String> = LazyLock::new(|| address("/page.css", CSS));
/// Address of the script.
pub(super) static JS_ADDRESS: LazyLock<String> = LazyLock::new(|| address("/page.js", JS));
/// Address of the icon.
pub(super) static ICON_ADDRESS: LazyLock<String> = LazyLock::new(|| address("/icon.svg", ICON));

fn address(path: &str, content: &str) -> String {
    format!("{path}?v={}", hex::encode(&Sha256::digest(content)[..8]))
}

pub(super) async fn css() -> Response {
    asset("text/css; charset=utf-8", CSS)
}

pub(super) async fn js() -> Response {
    asset("text/javascript; charset=utf-8", JS)
}

pub(super) async fn icon() -> Response {
    asset("image/svg+xml", ICON)
}

fn asset(kind: &'static str, content: &'static str) -> Response {
    let header = |name: HeaderName, value| (name, HeaderValue::from_static(value));
    let headers =
        [header(CONTENT_TYPE, kind), header(CACHE_CONTROL, "public, max-age=31536000, immutable")];
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::CSS;

    /// Colors of a scheme: the variables in a block.
    fn colors(block: &str) -> HashMap<&str, [f64; 3]> {
        let declarations = block.split(';').filter_map(|line| line.trim().split_once(':'));
        declarations
            .filter_map(|(name, value)| {
                let hex = value.trim().strip_prefix('#').filter(|hex| hex.len() == 6)?;
                let part = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).ok();
                let parts = [part(0)?, part(2)?, part(4)?];
                Some((name.trim().strip_prefix("--")?, parts.map(|part| f64::from(part) / 255.0)))
            })
            .collect()
    }

    /// Contrast by WCAG 2.2.
    fn contrast(one: [f64; 3], other: [f64; 3]) -> f64 {
        let luminance = |color: [f64; 3]| {
            let [r, g, b] = color
                .map(|c| if c <= 0.040_45 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) });
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    #[test]
    fn both_schemes_can_be_read() {
        let (light, rest) = CSS.split_once('}').expect("the first block");
        let dark = rest.split_once("prefers-color-scheme: dark").expect("a dark scheme").1;
        let dark = dark.split('}').next().expect("its block");
        for (scheme, block) in [("light", light), ("dark", dark)] {
            let block = block.rsplit('{').next().expect("its content");
            let colors = colors(block);
            assert!(colors.len() >= 12, "{scheme}: {colors:?}");
            // Text on what is behind it has 4.5 at least, and what is no text has 3.
            for (front, back, least) in [
                ("text", "ground", 4.5),
                ("text", "raised", 4.5),
                ("quiet", "ground", 4.5),
                ("quiet", "raised", 4.5),
                ("link", "ground", 4.5),
                ("link", "raised", 4.5),
                ("good", "ground", 4.5),
                ("good", "raised", 4.5),
                ("warn", "ground", 4.5),
                ("warn", "raised", 4.5),
                ("bad", "ground", 4.5),
                ("bad", "raised", 4.5),
                ("on-action", "action", 4.5),
                ("on-action", "danger", 4.5),
                ("action", "ground", 3.0),
                ("danger", "ground", 3.0),
                ("edge", "ground", 3.0),
                ("edge", "raised", 3.0),
                ("bar", "raised", 3.0),
                ("bar", "ground", 3.0),
                ("bad", "ground", 3.0),
                ("focus", "ground", 3.0),
                ("focus", "raised", 3.0),
            ] {
                let of = |name| *colors.get(name).unwrap_or_else(|| panic!("{scheme}: {name}"));
                let found = contrast(of(front), of(back));
                assert!(found >= least, "{scheme}: {front} on {back} has {found:.2}");
            }
        }
    }
}
