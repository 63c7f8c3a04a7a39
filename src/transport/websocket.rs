//! `GET /ws`: the native protocol over WebSocket, one task for each socket.
//!
//! [`handshake`] checks the request. [`connection`] reads and writes the socket: it waits for one [`event::Event`] at a
//! time and passes it to [`conversation::Conversation::step`], which holds the protocol and touches no socket.

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use crate::edge::{Gateway, Refusal, json};
use crate::protocol::{Code, ENVELOPE, SUBPROTOCOL};

mod connection;
mod conversation;
mod event;
mod handshake;
mod timers;

/// Bytes of the read buffer. tungstenite fills it with zeros at each poll of the input: its default of 128 KiB costs
/// three times the CPU, and each connection holds it.
const READ_BUFFER: usize = 4 * 1024;

/// Bytes of the write buffer. tungstenite writes by itself beyond this size. It is larger than a batch, so that feeding
/// a batch does not wait. After a pong that the peer did not take, feeding may wait for the peer; the write timeout
/// then ends the connection.
const WRITE_BUFFER: usize = 32 * 1024;

/// The routes of this transport.
pub(crate) fn routes(gateway: Arc<Gateway>) -> Router {
    Router::new().route("/ws", any(upgrade)).with_state(gateway)
}

async fn upgrade(State(gateway): State<Arc<Gateway>>, mut head: Parts) -> Response {
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut head, &()).await {
        Ok(upgrade) => upgrade,
        Err(rejection) => return upgrade_required(&rejection),
    };
    let handshake = Box::new(handshake::check(&gateway, &head).await);
    let max_frame = gateway.config.max_payload + ENVELOPE;
    // Taken before the upgrade, so that a shutdown in between waits for this socket too.
    let running = gateway.tasks.token();
    upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER + 2 * max_frame)
        .max_message_size(max_frame)
        .max_frame_size(max_frame)
        .on_upgrade(move |socket| connection::run(gateway, socket, handshake, running))
}

/// The answer to a request that is no WebSocket handshake.
fn upgrade_required(rejection: &WebSocketUpgradeRejection) -> Response {
    let text = format!("this address speaks WebSocket (RFC 6455): {}", rejection.body_text());
    let response = json(StatusCode::UPGRADE_REQUIRED, Refusal::new(Code::BadRequest, text).body());
    ([(header::UPGRADE, "websocket")], response).into_response()
}
