//! Reads request bodies within limits of size and time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::edge::refusal::Refusal;
use crate::protocol::Code;

/// Most bytes above the limit that are read and discarded.
const MAX_DISCARDED: usize = 32 << 20;

/// Fewest bytes that a sender has to send in a second.
const MIN_RATE: usize = 16 * 1024;

/// Reads a request's body as text of at most `limit` bytes. It must arrive within `patience`, plus one second for each
/// 16 KiB.
///
/// The rest of a larger body is read and discarded, up to a further bound. The sender then reads the refusal instead of
/// a connection reset.
///
/// # Errors
/// `too_large`. `bad_request` for a body that is late, cut off or not UTF-8.
pub(crate) async fn body_text(mut body: Body, limit: usize, patience: Duration) -> Result<String, Refusal> {
    let mut bytes = Vec::new();
    let mut size = 0;
    let begun = Instant::now();
    // A sender that goes on sending gets more time, but not for a byte now and then.
    let deadline = |size| begun + patience + Duration::from_secs((size / MIN_RATE) as u64);
    while let Some(data) = next_data(&mut body, deadline(size), patience).await? {
        size += data.len();
        if size <= limit {
            bytes.extend_from_slice(&data);
            continue;
        }
        bytes = Vec::new();
        if size > limit + MAX_DISCARDED {
            break;
        }
    }
    if size > limit {
        let text = format!("the request body is larger than {limit} bytes, the most allowed here");
        return Err(Refusal::new(Code::TooLarge, text));
    }
    String::from_utf8(bytes).map_err(|_| Refusal::new(Code::BadRequest, "the request body is not UTF-8"))
}

/// The next part of a body; `None` at its end.
async fn next_data(body: &mut Body, deadline: Instant, patience: Duration) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| {
            let text = format!(
                "the request body did not come within {} s (see --header-timeout)",
                patience.as_secs_f32()
            );
            Refusal::new(Code::BadRequest, text)
        })?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|_| Refusal::new(Code::BadRequest, "the request body was cut off"))?;
        // Trailers hold no data.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io;

    use futures::stream::{self, StreamExt};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A body that sends these parts and then nothing more, without ending.
    fn endless(parts: Vec<&'static [u8]>) -> Body {
        let parts = stream::iter(parts).map(|part| Ok::<_, Infallible>(Bytes::from_static(part)));
        Body::from_stream(parts.chain(stream::pending()))
    }

    async fn code(body: Body, limit: usize) -> Code {
        body_text(body, limit, PATIENCE).await.unwrap_err().code
    }

    #[tokio::test]
    async fn a_body_up_to_the_limit_is_read_whole() {
        assert_eq!(body_text(Body::from("hello"), 5, PATIENCE).await.unwrap(), "hello");
        assert_eq!(body_text(Body::empty(), 0, PATIENCE).await.unwrap(), "");
        assert_eq!(code(Body::from("hello"), 4).await, Code::TooLarge);
    }

    #[tokio::test]
    async fn reading_stops_far_above_the_limit() {
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        let forever = stream::repeat_with(move || Ok::<_, Infallible>(chunk.clone()));
        assert_eq!(code(Body::from_stream(forever), 10).await, Code::TooLarge);
    }

    #[tokio::test]
    async fn a_body_that_is_no_text_or_breaks_off_is_refused() {
        assert_eq!(code(Body::from(vec![0xff]), 10).await, Code::BadRequest);
        let broken = stream::iter([Ok(Bytes::from_static(b"he")), Err(io::Error::other("reset"))]);
        let refusal = body_text(Body::from_stream(broken), 10, PATIENCE).await.unwrap_err();
        assert!(refusal.message.contains("cut off"), "{refusal:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_body_is_refused() {
        let begun = Instant::now();
        let refusal = body_text(endless(vec![b"he", b"l"]), 10, PATIENCE).await.unwrap_err();
        assert!(refusal.message.contains("within 5 s"), "{refusal:?}");
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_gets_more_time() {
        const PART: &[u8] = &[b'x'; 2 * MIN_RATE];
        let begun = Instant::now();
        body_text(endless(vec![PART]), 2 * PART.len(), PATIENCE).await.unwrap_err();
        assert_eq!(begun.elapsed(), PATIENCE + Duration::from_secs(2));
    }
}
