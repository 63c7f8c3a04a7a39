//! Reads request bodies within limits of size and time.

use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::edge::refusal::Refusal;
use crate::protocol::Code;

/// Reads a request's body as text of at most `limit` bytes. It must arrive within `patience`, plus one second for each
/// 16 KiB.
///
/// The rest of a larger body is read and discarded, up to a further bound. The sender then reads the refusal instead of
/// a connection reset.
///
/// # Errors
/// `too_large`. `bad_request` for a body that is late, cut off or not UTF-8.
pub(crate) async fn body_text(mut body: Body, limit: usize, patience: Duration) -> Result<String, Refusal> {
    /// Bytes above the limit that are read and discarded.
    const DRAIN: usize = 32 << 20;
    /// Bytes in a second that a sender has to send at least.
    const SLOWEST: usize = 16 * 1024;
    let mut bytes = Vec::new();
    let mut size = 0;
    let begun = Instant::now();
    loop {
        // A sender that goes on sending gets more time, but not for a byte now and then.
        let until = begun + patience + Duration::from_secs((size / SLOWEST) as u64);
        let frame = timeout_at(until, body.frame()).await.map_err(|_| {
            let text = format!(
                "the request body did not come within {} s (see --header-timeout)",
                patience.as_secs_f32()
            );
            Refusal::new(Code::BadRequest, text)
        })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| Refusal::new(Code::BadRequest, "the request body was cut off"))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size > limit + DRAIN {
            break;
        }
        if size <= limit {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
        }
    }
    if size > limit {
        let text = format!("the request body is larger than {limit} bytes, the most allowed here");
        return Err(Refusal::new(Code::TooLarge, text));
    }
    String::from_utf8(bytes).map_err(|_| Refusal::new(Code::BadRequest, "the request body is not UTF-8"))
}
