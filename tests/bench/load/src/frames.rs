//! The wire text of target `x0`: protocol version 1 of x0-msg-server, and the x0 client of today (`x0-legacy`).
//!
//! `c######` stands for a session or topic id (7 characters, patched in place), `{S}` for the session that
//! speaks, `{P}` for the payload object. Every template is rendered once, then patched.

pub const CH: &str = "c######";

/// What a subscriber does, as `client.js` does it: upgrade, hello, and in `fanout` subscribe to a topic.
pub const WS_PATH: &str = "/ws";
pub const WS_PROTOCOL: &str = "x0-msg.v1";
pub const WS_HELLO: &str = r#"{"type":"hello","session":"{S}"}"#;
pub const WS_HELLO_TOKEN: &str = r#"{"type":"hello","token":"{T}"}"#;
pub const WS_WELCOME: &str = r#""type":"welcome""#;
pub const WS_SUB: &str = r#"{"type":"subscribe","topic":"c######"}"#;
pub const WS_SUBSCRIBED: &str = r#""type":"subscribed""#;
pub const WS_ACK: &str = r#"{"type":"ack","seq":{N}}"#;
pub const WS_ERROR: &str = r#""type":"error""#;

/// A publisher has a session of its own, since ids are remembered by sender.
pub const WS_SEND: &str = r#"{"type":"send","id":"_I.00000000","to":{"session":"c######"},"payload":{P},"receipt":false,"volatile":false}"#;
pub const WS_SENT: &str = r#"{"type":"sent""#;

/// The native long-poll and HTTP publish.
pub const HTTP_PATH: &str = "/v1/messages";
pub const SSE_PATH: &str = "/v1/events";
pub const HTTP_SEND: &str = r#"{"id":"_I.00000000","to":{"session":"c######"},"payload":{P}}"#;

/// The x0 client: one address for everything, with a random `a__`, and the origin of its page.
pub const LEGACY_PATH: &str = "/python/MsgHandler.py?a__=0000000000";
pub const LEGACY_ORIGIN: &str = "Origin: http://x0-app.x0.localnet\r\n";
pub const LEGACY_GET: &str =
    r#"{"session_src":"c######","type":"GET","SessionData":{"ID":"SYS_SESSION","Value":"c######"}}"#;
pub const LEGACY_ERROR: &str = r#""error":true"#;
pub const LEGACY_SET: &str = r#"{"type":"SET","session_src":"p0","session_dst":"c######","payload":{P}}"#;

/// The same send to a user. In `token` mode nobody knows the session of another one.
pub fn to_user(send: &str) -> String {
    send.replace(r#""to":{"session":"#, r#""to":{"user":"#)
}

/// The same send to a topic.
pub fn to_topic(send: &str) -> String {
    send.replace(r#""to":{"session":"#, r#""to":{"topic":"#)
}
