//! Checks that a delivery comes from Gitea: HMAC-SHA256 over the payload's JSON text, with the
//! webhook's secret as key, compared in constant time.
//!
//! Architecture invariant: only [`Verifier::verify`] makes a [`Verified`], so nothing unverified is
//! parsed.

use axum::http::HeaderMap;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use service::secret::Secret;
use sha2::Sha256;
use strum::IntoStaticStr;
use thiserror::Error;

use super::content_type::ContentType;

const X_GITEA_SIGNATURE: &str = "x-gitea-signature";
const X_HUB_SIGNATURE_256: &str = "x-hub-signature-256";

/// Why a signature is refused.
#[derive(Clone, Copy, Debug, Error, IntoStaticStr, PartialEq, Eq)]
#[strum(serialize_all = "snake_case", prefix = "signature_")]
pub(crate) enum SignatureError {
    #[error("neither X-Gitea-Signature nor X-Hub-Signature-256 is there")]
    Missing,
    #[error("the signature is empty: the webhook has no secret in Gitea")]
    Empty,
    #[error("the signature is not 64 hex digits")]
    Malformed,
    /// A proxy may have checked either of the two, so neither is accepted.
    #[error("the signature header is there twice")]
    Repeated,
    #[error("the signature does not fit the payload; is the secret the same on both sides?")]
    Mismatch,
}

/// Which secret a signature was made with.
#[derive(Clone, Copy, Debug, IntoStaticStr, PartialEq, Eq)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum SecretUsed {
    Current,
    Previous,
}

/// A payload with a correct signature.
#[derive(Debug)]
pub(crate) struct Verified {
    text: Bytes,
    secret_used: SecretUsed,
}

impl Verified {
    /// The signed JSON text.
    pub(crate) fn text(&self) -> &Bytes {
        &self.text
    }

    pub(crate) fn secret_used(&self) -> SecretUsed {
        self.secret_used
    }
}

/// The current and the previous secret, as HMAC keys.
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

    /// Checks that `body` has this signature.
    pub(crate) fn verify(
        &self,
        content_type: ContentType,
        signature: &[u8; 32],
        body: Bytes,
    ) -> Result<Verified, SignatureError> {
        let text = match content_type {
            ContentType::Json => body,
            ContentType::Form => payload_of_form(&body),
        };
        let matches =
            |key: &Hmac<Sha256>| key.clone().chain_update(&text).verify_slice(signature).is_ok();
        let secret_used = if matches(&self.current) {
            SecretUsed::Current
        } else if self.previous.as_ref().is_some_and(matches) {
            SecretUsed::Previous
        } else {
            return Err(SignatureError::Mismatch);
        };
        Ok(Verified { text, secret_used })
    }
}

fn keyed(secret: &Secret) -> Hmac<Sha256> {
    // HMAC accepts a key of any length (RFC 2104), so the error cannot occur. The fallback equals
    // an empty key, which the settings refuse.
    Hmac::new_from_slice(secret.expose()).unwrap_or_else(|_| Hmac::new(&Default::default()))
}

/// The first `payload` field of a form, decoded. If there is none, the text is empty, and no
/// signature of Gitea matches an empty text.
fn payload_of_form(body: &[u8]) -> Bytes {
    let payload = form_urlencoded::parse(body).find(|(name, _)| name == "payload");
    payload.map_or_else(Bytes::new, |(_, text)| Bytes::from(text.into_owned()))
}

/// The signature from the headers. `X-Hub-Signature-256` is used only if `X-Gitea-Signature` is
/// absent.
pub(super) fn claimed(headers: &HeaderMap) -> Result<[u8; 32], SignatureError> {
    let (name, prefix) = if headers.contains_key(X_GITEA_SIGNATURE) {
        (X_GITEA_SIGNATURE, "")
    } else {
        (X_HUB_SIGNATURE_256, "sha256=")
    };
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(SignatureError::Missing)?;
    if values.next().is_some() {
        return Err(SignatureError::Repeated);
    }
    let digits = value.as_bytes().strip_prefix(prefix.as_bytes());
    let digits = digits.ok_or(SignatureError::Malformed)?;
    if digits.is_empty() {
        return Err(SignatureError::Empty);
    }
    // Upper-case digits are accepted, because they encode the same digest.
    let mut signature = [0; 32];
    hex::decode_to_slice(digits, &mut signature).map_err(|_| SignatureError::Malformed)?;
    Ok(signature)
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
        let verified = claimed(&map)
            .and_then(|signature| verifier.verify(content_type, &signature, body.into()));
        match verified {
            Ok(verified) => format!("{:?} {:?}", verified.secret_used(), verified.text()),
            Err(error) => <&str>::from(error).to_owned(),
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
            assert_eq!(payload_of_form(form.as_bytes()), payload, "{form}");
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
}
