//! The signature of a call (Standard Webhooks 1.0.0).

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use service::secret::Secret;
use sha2::Sha256;

/// What a secret begins with that is written in base64.
const PREFIX: &[u8] = b"whsec_";

/// The value of `webhook-signature`.
///
/// # Errors
/// If the secret cannot be read.
pub(super) fn sign(secret: &Secret, id: &str, seconds: u64, body: &[u8]) -> Result<String, String> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(&key(secret)?).map_err(|error| error.to_string())?;
    mac.update(format!("{id}.{seconds}.").as_bytes());
    mac.update(body);
    Ok(format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes())))
}

fn key(secret: &Secret) -> Result<Vec<u8>, String> {
    match secret.expose().strip_prefix(PREFIX) {
        Some(encoded) => BASE64
            .decode(encoded.trim_ascii_end())
            .map_err(|_| "the secret of the signature is no base64 after whsec_".to_owned()),
        None => Ok(secret.expose().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_reference() {
        // The vector that the reference libraries of Standard Webhooks test with.
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        let signed = sign(&secret, id, 1_614_265_330, body).expect("a signature");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let bytes = BASE64.decode(b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("base64");
        assert_eq!(
            sign(&Secret::new(bytes), id, 1_614_265_330, body).expect("a signature"),
            signed
        );
        assert_ne!(sign(&secret, id, 1_614_265_331, body).expect("a signature"), signed);
    }

    #[test]
    fn a_secret_that_is_no_base64_is_told_without_it() {
        let error = sign(&Secret::new("whsec_?!"), "id", 1, b"").expect_err("no base64");
        assert!(error.contains("whsec_") && !error.contains("?!"), "{error}");
    }
}
