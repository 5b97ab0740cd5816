//! Is it Gitea that sent this? HMAC-SHA256 over the payload's JSON text, with
//! the webhook's secret as key, compared in constant time.
//!
//! Only [`Verifier::verify`] makes a [`VerifiedDelivery`], so nothing unverified is parsed.

use std::ops::Range;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::config::Secret;

use crate::{buffer::Buffer, reply::Refusal};

const X_GITEA_SIGNATURE: &str = "x-gitea-signature";
const X_HUB_SIGNATURE_256: &str = "x-hub-signature-256";

/// The two content types of Gitea's webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentType {
    /// The body is the JSON text.
    Json,
    /// The body is `payload=<urlencoded JSON text>`; what is signed is the decoded text.
    Form,
}

impl ContentType {
    /// From the `Content-Type` header. Parameters (a charset, say) are let be.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = value.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/json") {
            Ok(Self::Json)
        } else if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            Ok(Self::Form)
        } else {
            Err(Refusal::new(
                axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_content_type",
                "send application/json or application/x-www-form-urlencoded",
            ))
        }
    }
}

/// Which secret a signature was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecretUsed {
    Current,
    Previous,
}

impl SecretUsed {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
        }
    }
}

/// A payload that carries a good signature.
#[derive(Debug)]
pub(crate) struct VerifiedDelivery {
    text: Bytes,
    secret_used: SecretUsed,
}

impl VerifiedDelivery {
    /// The signed JSON text.
    pub(crate) fn text(&self) -> &Bytes {
        &self.text
    }

    pub(crate) fn secret_used(&self) -> SecretUsed {
        self.secret_used
    }
}

/// The secrets, ready for use.
#[derive(Clone)]
pub(crate) struct Verifier {
    current: Hmac<Sha256>,
    previous: Option<Hmac<Sha256>>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(…)")
    }
}

impl Verifier {
    pub(crate) fn new(current: &Secret, previous: Option<&Secret>) -> Self {
        Self { current: keyed(current), previous: previous.map(keyed) }
    }

    /// Checks that `body` has the signature that its head claims.
    pub(crate) fn verify(
        &self,
        claim: Claim,
        mut body: Buffer,
    ) -> Result<VerifiedDelivery, Refusal> {
        let text = match claim.content_type {
            ContentType::Json => body.freeze(),
            ContentType::Form => {
                let payload = payload_of_form(body.as_mut());
                body.freeze().slice(payload)
            }
        };
        let matches = |key: &Hmac<Sha256>| {
            key.clone().chain_update(&text).verify_slice(&claim.signature).is_ok()
        };
        let secret_used = if matches(&self.current) {
            SecretUsed::Current
        } else if self.previous.as_ref().is_some_and(matches) {
            SecretUsed::Previous
        } else {
            return Err(Refusal::unauthorized(
                "signature_mismatch",
                "the signature does not fit the payload; is the secret the same on both sides?",
            ));
        };
        Ok(VerifiedDelivery { text, secret_used })
    }
}

fn keyed(secret: &Secret) -> Hmac<Sha256> {
    // HMAC takes a key of any length (RFC 2104), so the error cannot occur;
    // an empty key in its place is refused by the settings.
    Hmac::new_from_slice(secret.expose()).unwrap_or_else(|_| Hmac::new(&Default::default()))
}

/// What the head of a delivery claims of its body. Who claims nothing needs no body read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    content_type: ContentType,
    signature: [u8; 32],
}

impl Claim {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        Ok(Self { content_type: ContentType::of(headers)?, signature: signature(headers)? })
    }
}

/// The signature that the headers claim. `X-Gitea-Signature` counts where it
/// is present; `X-Hub-Signature-256` only where it is not.
fn signature(headers: &HeaderMap) -> Result<[u8; 32], Refusal> {
    let (name, prefix) = if headers.contains_key(X_GITEA_SIGNATURE) {
        (X_GITEA_SIGNATURE, "")
    } else {
        (X_HUB_SIGNATURE_256, "sha256=")
    };
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Err(Refusal::unauthorized(
            "signature_missing",
            "neither X-Gitea-Signature nor X-Hub-Signature-256 is there",
        ));
    };
    if values.next().is_some() {
        // Which of them a proxy in between has checked is anybody's guess.
        return Err(Refusal::unauthorized(
            "signature_repeated",
            "the signature header is there twice",
        ));
    }
    let malformed =
        || Refusal::unauthorized("signature_malformed", "the signature is not 64 hex digits");
    let digits = value.as_bytes().strip_prefix(prefix.as_bytes()).ok_or_else(malformed)?;
    if digits.is_empty() {
        return Err(Refusal::unauthorized(
            "signature_empty",
            "the signature is empty: the webhook has no secret in Gitea",
        ));
    }
    // Upper case is let pass: it is the same digest.
    let mut signature = [0; 32];
    hex::decode_to_slice(digits, &mut signature).map_err(|_| malformed())?;
    Ok(signature)
}

/// Where the first `payload` of a form is, decoded in its own place: whoever
/// sends a form need not know the secret to have it decoded. A form without one
/// has an empty text, which no signature of Gitea fits.
fn payload_of_form(body: &mut [u8]) -> Range<usize> {
    let find = |body: &[u8], byte, from: usize, to: usize| {
        body[from..to].iter().position(|b| *b == byte).map_or(to, |at| from + at)
    };
    let mut start = 0;
    while start < body.len() {
        let end = find(body, b'&', start, body.len());
        let name_end = find(body, b'=', start, end);
        let name = decode(&mut body[start..name_end]);
        if body[start..start + name] == *b"payload" {
            let value = end.min(name_end + 1);
            return value..value + decode(&mut body[value..end]);
        }
        start = end + 1;
    }
    0..0
}

/// Decodes a part of a form in place, as the URL standard has it; returns its new length.
fn decode(text: &mut [u8]) -> usize {
    let digit = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let (mut from, mut to) = (0, 0);
    while from < text.len() {
        let escaped = digit(text.get(from + 1)).zip(digit(text.get(from + 2)));
        let (byte, width) = match (text[from], escaped) {
            (b'%', Some((high, low))) => ((high * 16 + low) as u8, 3),
            (b'+', _) => (b' ', 1),
            (other, _) => (other, 1),
        };
        text[to] = byte;
        to += 1;
        from += width;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    /// HMAC-SHA256 of "{}" with the key "s3cr3t", made with
    /// `printf '{}' | openssl dgst -sha256 -hmac s3cr3t`.
    const GOOD: &str = "608b0c406f3dda19702d71a048483b8c331283106d80a208e3cf43dbde505286";

    fn outcome(
        headers: &[(&'static str, &str)],
        content_type: ContentType,
        body: &'static [u8],
    ) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("header"));
        }
        let verifier = Verifier::new(&Secret::new("s3cr3t"), Some(&Secret::new("0ld")));
        let claim = signature(&map).map(|signature| Claim { content_type, signature });
        match claim.and_then(|claim| verifier.verify(claim, Buffer::Small(body.into()))) {
            Ok(delivery) => format!("{:?} {:?}", delivery.secret_used(), delivery.text()),
            Err(refusal) => {
                assert_eq!(refusal.status, 401);
                refusal.code.to_owned()
            }
        }
    }

    #[test]
    fn signatures_are_decided_one_by_one() {
        const GITEA: &str = X_GITEA_SIGNATURE;
        const HUB: &str = X_HUB_SIGNATURE_256;
        let prefixed = format!("sha256={GOOD}");
        let upper = GOOD.to_uppercase();
        let wrong = "0".repeat(64);
        let kept = r#"Current b"{}""#;
        for (headers, expected) in [
            (vec![], "signature_missing"),
            (vec![(GITEA, GOOD)], kept),
            (vec![(HUB, prefixed.as_str())], kept),
            (vec![(GITEA, GOOD), (HUB, "sha256=nonsense")], kept),
            (vec![(GITEA, upper.as_str())], kept),
            (vec![(GITEA, "")], "signature_empty"),
            (vec![(HUB, "sha256=")], "signature_empty"),
            (vec![(GITEA, ""), (HUB, prefixed.as_str())], "signature_empty"),
            (vec![(GITEA, &GOOD[..62])], "signature_malformed"),
            (vec![(GITEA, prefixed.as_str())], "signature_malformed"),
            (vec![(HUB, GOOD)], "signature_malformed"),
            (vec![(GITEA, &"zz".repeat(32))], "signature_malformed"),
            (vec![(GITEA, GOOD), (GITEA, GOOD)], "signature_repeated"),
            (vec![(GITEA, wrong.as_str())], "signature_mismatch"),
            (vec![(GITEA, wrong.as_str()), (HUB, prefixed.as_str())], "signature_mismatch"),
        ] {
            assert_eq!(outcome(&headers, ContentType::Json, b"{}"), expected, "{headers:?}");
        }
    }

    #[test]
    fn the_form_is_verified_by_its_decoded_payload() {
        for (body, expected) in [
            (&b"payload=%7B%7D"[..], r#"Current b"{}""#),
            (b"other=1&payload={}", r#"Current b"{}""#),
            (b"payload=%7B%7D&payload=other", r#"Current b"{}""#),
            (b"&&p%61yload=%7b%7D&", r#"Current b"{}""#),
            (b"payload&payload=%7B%7D", "signature_mismatch"),
            (b"payload=%7B%7D%", "signature_mismatch"),
            (b"{}", "signature_mismatch"),
            (b"", "signature_mismatch"),
        ] {
            assert_eq!(outcome(&[(X_GITEA_SIGNATURE, GOOD)], ContentType::Form, body), expected);
        }
    }

    #[test]
    fn a_form_is_decoded_as_the_url_standard_has_it() {
        for (form, payload) in [
            ("payload=a%20b+c", "a b c"),
            ("payload=%2B%26%3d%25", "+&=%"),
            ("payload=%C3%BC\u{fc}", "\u{fc}\u{fc}"),
            ("payload=%zz%4%%41%", "%zz%4%A%"),
            ("payload=a=b&c", "a=b"),
            ("+payload=1&payload=2", "2"),
            ("payload", ""),
            ("payload=", ""),
            ("xpayload=1", ""),
            ("", ""),
        ] {
            let mut body = form.as_bytes().to_vec();
            let place = payload_of_form(&mut body);
            assert_eq!(std::str::from_utf8(&body[place]), Ok(payload), "{form}");
        }
    }

    #[test]
    fn the_former_secret_still_counts_and_is_told_apart() {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"0ld").expect("key");
        mac.update(b"{}");
        let signature = hex::encode(mac.finalize().into_bytes());
        assert_eq!(
            outcome(&[(X_GITEA_SIGNATURE, &signature)], ContentType::Json, b"{}"),
            r#"Previous b"{}""#
        );
    }

    #[test]
    fn content_types_of_gitea_are_taken_and_others_are_not() {
        for (value, expected) in [
            (Some("application/json"), Some(ContentType::Json)),
            (Some("Application/JSON; charset=utf-8"), Some(ContentType::Json)),
            (Some("application/x-www-form-urlencoded"), Some(ContentType::Form)),
            (Some("text/plain"), None),
            (Some("application/jsonx"), None),
            (None, None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            }
            assert_eq!(ContentType::of(&headers).ok(), expected, "{value:?}");
        }
    }
}
