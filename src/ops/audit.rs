//! The audit log: a line for each action of an operator, with the target `audit`.

use std::fmt::Display;

use crate::edge::Operator;

/// The name that stands for an operator without an API key, in `open` mode.
const LOCAL: &str = "(local)";

fn name(operator: &Operator) -> &str {
    operator.key.as_deref().unwrap_or(LOCAL)
}

/// A session was ended, and so many messages that waited for it were deleted.
pub(super) fn session_ended(operator: &Operator, session: impl Display, discarded: usize) {
    tracing::info!(target: "audit", key = name(operator), %session, discarded, "session ended");
}

/// A test message was sent.
pub(super) fn test_message_sent(operator: &Operator, to: impl Display, bytes: usize) {
    tracing::info!(target: "audit", key = name(operator), %to, bytes, "test message sent");
}
