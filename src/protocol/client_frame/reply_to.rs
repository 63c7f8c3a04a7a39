//! The `reply_to` of a request.

use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::protocol::json::{Malformed, field};

/// Longest `reply_to`, in bytes. With names of the longest kind it has about 1,500.
pub(super) const MAX_REPLY_TO: usize = 2048;

/// The `reply_to` of a request. Whether it is one, only the broker knows.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 2048, pattern = "^[A-Za-z0-9_-]+$")]
pub struct ReplyTo(String);

impl ReplyTo {
    /// Takes base64url that is not too long; `None` for other text.
    pub(crate) fn new(text: String) -> Option<Self> {
        let is_base64 = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        (is_base64 && (1..=MAX_REPLY_TO).contains(&text.len())).then_some(Self(text))
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Decodes the `reply` of a receiver.
pub(super) fn reply_to(raw: &RawValue) -> Result<ReplyTo, Malformed> {
    const WANTED: &str = "the `reply_to` of a request";
    let text = field(raw, "to.reply", WANTED)?;
    ReplyTo::new(text).ok_or(Malformed::Wrong { field: "to.reply", wanted: WANTED })
}
