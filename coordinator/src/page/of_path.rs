//! Parts of a path, with a page for what is no text.

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::failure::Failure;

/// Parts of a path, as texts.
pub(super) struct OfPath<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for OfPath<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(texts)) => Ok(Self(texts)),
            Err(_) => Err(Failure::BadRequest("The address holds what is no text.".into())),
        }
    }
}
