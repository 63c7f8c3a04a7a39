//! Requests and answers of an x0 page.

use serde_json::{Value, json};

use super::{Http, Reply};

/// The path that the x0 client calls.
pub const HANDLER: &str = "/python/MsgHandler.py";

/// The body of a poll by an x0 page.
pub fn x0_poll(session: &str) -> Value {
    json!({ "session_src": session, "type": "GET", "SessionData": { "ID": "SYS_SESSION", "Value": session } })
}

/// The body of a raw send by an x0 page.
pub fn x0_set(from: &str, to: &str, payload: &Value) -> Value {
    json!({ "type": "SET", "session_src": from, "session_dst": to, "payload": payload })
}

impl Http {
    /// Polls as an x0 page does, with a new `a__`; the messages without their `session_src`.
    pub async fn x0(&mut self, session: &str) -> Vec<Value> {
        let reply = self.post(&x0_target(), x0_poll(session)).await;
        x0_messages(&reply)
    }
}

/// The handler with a new `a__`.
pub fn x0_target() -> String {
    format!("{HANDLER}?a__={:010}", fastrand::u64(..10_000_000_000))
}

/// The messages of an answer to an x0 page without their `session_src`.
pub fn x0_messages(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.header("access-control-allow-origin"), "*");
    let Some(messages) = reply.json()["messages"].as_array().cloned() else { return Vec::new() };
    messages
        .into_iter()
        .map(|mut message| {
            message.as_object_mut().unwrap().remove("session_src").expect("every message names its sender");
            message
        })
        .collect()
}
