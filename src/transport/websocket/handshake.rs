//! What the handshake request says: where it comes from, and possibly who connects.

use std::net::IpAddr;

use axum::http::request::Parts;

use crate::config::Auth;
use crate::edge::{
    Caller, Gateway, OriginCheck, Query, Refusal, SessionPolicy, bearer, client_address, origin_refused,
    peer_of,
};
use crate::limits::ConnectionPermit;
use crate::protocol::{Code, Resume};

/// An accepted handshake.
pub(super) struct Handshake {
    /// The client's address, if known.
    pub(super) address: Option<IpAddr>,
    /// The caller and its position, if the request identifies it. A browser cannot set the header: its first frame
    /// identifies it.
    pub(super) caller: Option<(Caller, Resume)>,
    /// Counts the connection for its address.
    pub(super) permit: ConnectionPermit,
}

/// Checks a handshake request.
///
/// # Errors
/// `forbidden` for an origin that is not allowed, `rate_limited` for too many connections from one address,
/// `bad_request` for a bad query, and the errors of [`Gateway::identify`].
pub(super) async fn check(gateway: &Gateway, head: &Parts) -> Result<Handshake, Refusal> {
    let headers = &head.headers;
    if !OriginCheck::from(head).origin_allowed(&gateway.config.access) {
        return Err(origin_refused(headers));
    }
    let address = client_address(&gateway.config.access, peer_of(&head.extensions), headers);
    let permit = gateway.connection_permit(address)?;
    let query = Query::of(&head.uri);
    if query.get("token").is_some() {
        let text = "a token does not belong into the address, where logs show it; put it into `hello`";
        return Err(Refusal::new(Code::BadRequest, text));
    }
    let (session, bearer) = (query.session()?, bearer(headers)?);
    let identifies = bearer.is_some() || session.is_some() && gateway.identity.auth() == Auth::Open;
    let mut caller = None;
    if identifies {
        let grant = gateway.identify(bearer, session, SessionPolicy::Create).await?;
        caller = Some((Caller { grant, address }, query.resume("after")?));
    }
    Ok(Handshake { address, caller, permit })
}
