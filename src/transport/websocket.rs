//! `GET /ws`: the native protocol over WebSocket, one task for each socket.
//!
//! [`handshake`] checks the request. [`connection`] waits for one [`event::Event`] of the [`socket`] at a time and passes
//! it to [`conversation::Conversation::step`], which holds the protocol and touches no socket.

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, PAD};
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::edge::{Gateway, Refusal};
use crate::protocol::{Code, SUBPROTOCOL};

mod connection;
mod conversation;
mod event;
mod handshake;
mod opening;
mod seldom;
mod signs;
pub(crate) mod socket;
mod timers;
mod window;

pub(crate) use opening::{Offer, Opened, Opening};

/// The address of this transport.
pub(crate) const PATH: &str = "/ws";

/// The routes of this transport.
pub(crate) fn routes(gateway: Arc<Gateway>) -> Router {
    Router::new().route(PATH, any(upgrade)).with_state(gateway)
}

async fn upgrade(State(gateway): State<Arc<Gateway>>, mut head: Parts) -> Response {
    // The extractor takes it away.
    let on_upgrade = head.extensions.get::<OnUpgrade>().cloned();
    let checked = match WebSocketUpgrade::from_request_parts(&mut head, &()).await {
        // Over HTTP/2 there is no key (RFC 8441 section 5).
        Ok(_) if head.version < Version::HTTP_2 && !has_valid_key(&head.headers) => return bad_key(),
        Ok(checked) => checked.protocols([SUBPROTOCOL]),
        Err(WebSocketUpgradeRejection::WebSocketKeyHeaderMissing(_)) => return bad_key(),
        Err(rejection) => return upgrade_required(&rejection, head.version),
    };
    let response = switching_protocols(&head, checked.selected_protocol());
    let handshake = handshake::check(&gateway, (&head).into()).await;
    if let Some(on_upgrade) = on_upgrade {
        // Taken before the upgrade, so that a shutdown in between waits for this socket too.
        let running = gateway.tasks.token();
        tokio::spawn(connection::run(gateway, on_upgrade, handshake, running));
    }
    response
}

/// The answer to a valid handshake (RFC 6455 section 4.2.2, RFC 8441 section 5).
fn switching_protocols(head: &Parts, subprotocol: Option<&HeaderValue>) -> Response {
    let mut response = Response::default();
    if head.version < Version::HTTP_2 {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let key = head.headers.get(header::SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
        let accept = HeaderValue::try_from(derive_accept_key(key)).expect("base64");
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(subprotocol) = subprotocol {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol.clone());
    }
    response
}

/// The form of a key: browsers and libraries differ in the bits that are left over.
const KEY: GeneralPurpose = GeneralPurpose::new(&STANDARD, PAD.with_decode_allow_trailing_bits(true));

/// Bytes of a key (RFC 6455 section 4.1).
const KEY_BYTES: usize = 16;

/// Whether a handshake has one `Sec-WebSocket-Key`, of the right length.
fn has_valid_key(headers: &HeaderMap) -> bool {
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    matches!((keys.next(), keys.next()), (Some(key), None) if is_valid_key(key.as_bytes()))
}

fn is_valid_key(key: &[u8]) -> bool {
    KEY.decode_slice(key, &mut [0; 2 * KEY_BYTES]).is_ok_and(|bytes| bytes == KEY_BYTES)
}

/// The answer to a handshake without a valid key (RFC 6455 section 4.2.1).
fn bad_key() -> Response {
    let text = format!("header `Sec-WebSocket-Key` must be there once, and hold {KEY_BYTES} bytes in base64");
    Refusal::new(Code::BadRequest, text).into_response()
}

/// The answer to a request that is no WebSocket handshake (RFC 9110 section 15.5.22, RFC 6455 section 4.2.2).
fn upgrade_required(rejection: &WebSocketUpgradeRejection, version: Version) -> Response {
    let text = format!("this address speaks WebSocket (RFC 6455): {}", rejection.body_text());
    let mut response = Refusal::new(Code::BadRequest, text).with_status(StatusCode::UPGRADE_REQUIRED);
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    // HTTP/2 has no such headers (RFC 9113 section 8.2.2).
    if version < Version::HTTP_2 {
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    response
}
