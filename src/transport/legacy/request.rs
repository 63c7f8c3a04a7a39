//! Requests of the x0 client: their addresses, and how they are read.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;

use crate::budget::Permit;
use crate::edge::{BodyBounds, Query};
use crate::protocol::Code;
use crate::transport::legacy::answer::{answer, failure, not_x0};
use crate::transport::legacy::shape::{self, LegacyError, LegacyPath, LegacyRequest};

/// The addresses of this transport.
pub(crate) const PATHS: [(&str, LegacyPath); 3] =
    [("/python/MsgHandler.py", LegacyPath::Handler), ("/get", LegacyPath::Get), ("/set", LegacyPath::Set)];

/// Whether this path of an address belongs to this transport.
pub(crate) fn is_path(path: &str) -> bool {
    path_of(path).is_some()
}

/// What the path of an address implies.
pub(crate) fn path_of(path: &str) -> Option<LegacyPath> {
    PATHS.iter().find(|(address, _)| *address == path).map(|(_, path)| *path)
}

/// Whether a body is refused since it is large: too large, or too large without a proof, or for now.
fn is_about_size(code: Code) -> bool {
    matches!(code, Code::TooLarge | Code::Unauthorized | Code::Overloaded)
}

/// A request that was read.
pub(super) struct Read {
    pub(super) request: Result<LegacyRequest, LegacyError>,
    /// The share of its body in the memory budget. A send may have to wait with its payload.
    pub(super) permit: Option<Permit>,
}

/// Parses a request, or answers it if it needs no action.
pub(super) async fn read(path: LegacyPath, request: Request, bounds: BodyBounds) -> Result<Read, Response> {
    let (request, permit) = match *request.method() {
        Method::POST => match bounds.read(request.into_body()).await {
            Ok(body) => (shape::body(path, &body), Some(body.into_permit())),
            // Only a send can be so large.
            Err(refusal) if is_about_size(refusal.code) => return Err(failure(&refusal)),
            Err(refusal) => (Err(LegacyError::NotX0(refusal.message)), None),
        },
        Method::GET => match Query::parse(request.uri()).map(|query| shape::query(&query)) {
            Ok(Some(request)) => (request, None),
            Ok(None) => return Err(answer(StatusCode::OK, Body::empty())),
            Err(refusal) => (Err(LegacyError::NotX0(refusal.message)), None),
        },
        Method::HEAD => return Err(answer(StatusCode::OK, Body::empty())),
        Method::OPTIONS => return Err(answer(StatusCode::NO_CONTENT, Body::empty())),
        _ => {
            let text = "poll and send with POST; net events come with GET";
            return Err(not_x0(StatusCode::METHOD_NOT_ALLOWED, text));
        }
    };
    Ok(Read { request, permit })
}
