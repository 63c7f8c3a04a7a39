//! The id in the address of a request.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::edge::{Gateway, Refusal};
use crate::message::{Handle, NameError, SessionId};
use crate::protocol::Code;

/// The id in the address.
pub(crate) struct PathId(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let invalid = |rejection: PathRejection| {
            Refusal::new(Code::BadRequest, format!("the id in the address: {}", rejection.body_text()))
        };
        Path::from_request_parts(parts, state).await.map(|Path(id)| Self(id)).map_err(invalid)
    }
}

/// The name that the id in the address is.
///
/// # Errors
/// `bad_request` if it breaks a rule of names.
pub(super) fn name<T>(id: &str, new: impl Fn(&str) -> Result<T, NameError>) -> Result<T, Refusal> {
    new(id).map_err(|reason| Refusal::new(Code::BadRequest, format!("the id in the address {reason}")))
}

/// The session that is meant by its id, or by its handle.
///
/// # Errors
/// `bad_request` if it is no name, `not_found` for a handle that no registered session has.
pub(crate) async fn session_named(gateway: &Gateway, id: &str) -> Result<SessionId, Refusal> {
    let Some(handle) = Handle::parse(id) else { return name(id, SessionId::new) };
    let found = gateway.broker.directory().session_of(handle).await;
    found.ok_or_else(|| Refusal::new(Code::NotFound, "no registered session has this handle"))
}
