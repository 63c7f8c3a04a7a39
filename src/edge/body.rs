//! Reads request bodies within limits of size, time and memory.

use std::ops::Deref;
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::{Instant, timeout_at};

use crate::budget::{Budget, Holder, Permit, SMALL, SPENT, UNPROVED_MOST};
use crate::config::{Auth, Config};
use crate::edge::gateway::Gateway;
use crate::edge::refusal::Refusal;
use crate::metrics::{self, Limit};
use crate::protocol::{Code, ENVELOPE};

/// Most bytes above the limit that are read and discarded.
const MAX_DISCARDED: usize = 32 << 20;

/// Fewest bytes that a sender has to send in a second.
const MIN_RATE: usize = 16 * 1024;

/// A deadline that is noticed later than this was held up by this process, and says nothing about the sender.
const LATE: Duration = Duration::from_secs(1);

/// A whole request body, with its share of the memory budget.
#[derive(Debug)]
pub(crate) struct BodyText {
    text: String,
    permit: Permit,
}

impl BodyText {
    /// Keeps only the share, for what was parsed from the text.
    pub(crate) fn into_permit(self) -> Permit {
        self.permit
    }
}

impl Deref for BodyText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// Most bytes of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyLimit {
    /// Those of a message of `--max-payload` bytes, with what is around it.
    Message,
    /// So many.
    Bytes(usize),
}

impl BodyLimit {
    /// The number of bytes.
    #[must_use]
    pub(crate) fn bytes(self, config: &Config) -> usize {
        match self {
            Self::Message => config.max_payload + ENVELOPE,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// What a body may take.
pub(crate) struct BodyBounds {
    /// Most bytes.
    limit: usize,
    /// The limit that refuses a larger body, if metrics count it.
    counted: Option<Limit>,
    /// Most bytes of a sender that has proved nothing.
    unproved: Option<usize>,
    /// It must arrive within this time, plus one second for each 16 KiB.
    patience: Duration,
    /// Its share of the memory budget.
    permit: Permit,
}

impl BodyBounds {
    fn new(config: &Config, limit: BodyLimit, (sender, is_capped): (Holder, bool), budget: &Budget) -> Self {
        Self {
            limit: limit.bytes(config),
            counted: (limit == BodyLimit::Message).then_some(Limit::Payload),
            unproved: is_capped.then_some(UNPROVED_MOST),
            patience: config.header_timeout,
            permit: budget.permit(sender),
        }
    }

    /// The bounds of a message of a sender that has proved nothing, whatever the mode.
    pub(crate) fn of_unproved(config: &Config, budget: &Budget) -> Self {
        Self::new(config, BodyLimit::Message, (Holder::Unproved, true), budget)
    }

    /// Reads a body as text; see [`Gateway::body_text`].
    ///
    /// # Errors
    /// Those of [`Gateway::body_text`].
    pub(crate) async fn read(self, body: Body) -> Result<BodyText, Refusal> {
        Reading::new(body, self).text().await
    }
}

impl Gateway {
    /// Reads a request's body as text within the limit, within the header timeout plus one second for each 16 KiB,
    /// and within the memory budget. A large body waits for room as long.
    ///
    /// The rest of a refused body is read and discarded, up to a further bound. The sender then reads the refusal instead
    /// of a connection reset.
    ///
    /// # Errors
    /// `too_large`. `overloaded` if there is no room in the memory budget. `unauthorized` for a large body of a sender that
    /// has proved nothing where proofs are asked for. `bad_request` for a body that is late, cut off or not UTF-8.
    pub(crate) async fn body_text(
        &self,
        body: Body,
        limit: BodyLimit,
        sender: Holder,
    ) -> Result<BodyText, Refusal> {
        self.body_bounds(limit, sender).read(body).await
    }

    /// The text of a body that has come already, if it is so small that it needs no share of the memory budget. `None` says nothing:
    /// such a body has to be read.
    #[must_use]
    pub(crate) fn small_body<'a>(&self, body: &'a [u8], limit: BodyLimit) -> Option<&'a str> {
        std::str::from_utf8(body).ok().filter(|body| body.len() <= limit.bytes(&self.config).min(SMALL))
    }

    /// The bounds of a body.
    pub(crate) fn body_bounds(&self, limit: BodyLimit, sender: Holder) -> BodyBounds {
        let is_capped = sender == Holder::Unproved && self.identity.auth() == Auth::Token;
        BodyBounds::new(&self.config, limit, (sender, is_capped), &self.budget)
    }
}

/// A body that is being read.
struct Reading {
    body: Body,
    bounds: BodyBounds,
    bytes: Vec<u8>,
    /// Bytes that have come so far.
    size: usize,
    /// When the reading began, later by what it waited for room.
    begun: Instant,
    /// Why the rest is discarded.
    refusal: Option<Refusal>,
}

impl Reading {
    fn new(body: Body, bounds: BodyBounds) -> Self {
        Self { body, bounds, bytes: Vec::new(), size: 0, begun: Instant::now(), refusal: None }
    }

    async fn text(mut self) -> Result<BodyText, Refusal> {
        while let Some(data) = self.next_data().await? {
            self.size += data.len();
            if self.refusal.is_none() {
                match self.make_room().await {
                    Ok(()) => self.bytes.extend_from_slice(&data),
                    Err(refusal) => self.discard(refusal),
                }
            }
            if self.refusal.is_some() && self.size > self.bounds.limit + MAX_DISCARDED {
                break;
            }
        }
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        let text = String::from_utf8(self.bytes);
        let text = text.map_err(|_| Refusal::new(Code::BadRequest, "the request body is not UTF-8"))?;
        Ok(BodyText { text, permit: self.bounds.permit })
    }

    /// Forgets what has come, and what comes.
    fn discard(&mut self, refusal: Refusal) {
        self.bytes = Vec::new();
        self.bounds.permit.shrink_to(0);
        self.refusal = Some(refusal);
    }

    /// Makes the buffer large enough for what has come. Grows it by doubling, but not beyond the announced size.
    async fn make_room(&mut self) -> Result<(), Refusal> {
        let (limit, unproved) = (self.bounds.limit, self.bounds.unproved);
        if self.size > limit {
            self.bounds.counted.into_iter().for_each(|limit| metrics::limited(limit).count());
            let text = format!("the request body is larger than {limit} bytes, the most allowed here");
            return Err(Refusal::new(Code::TooLarge, text));
        }
        if let Some(most) = unproved.filter(|most| self.size > *most) {
            return Err(unproved_body(most));
        }
        if self.size <= self.bytes.capacity() {
            return Ok(());
        }
        let announced = self.body.size_hint().exact().and_then(|left| usize::try_from(left).ok());
        let whole = announced.map_or(limit, |left| self.size.saturating_add(left).min(limit));
        let wanted = self.size.max((2 * self.bytes.capacity()).min(whole));
        let begun = Instant::now();
        if timeout_at(self.deadline(), self.bounds.permit.cover(wanted)).await.is_err() {
            return Err(no_room());
        }
        self.begun += begun.elapsed();
        self.bytes.reserve_exact(wanted - self.bytes.len());
        Ok(())
    }

    /// When the sender is late. One that goes on sending gets more time, but not for a byte now and then.
    fn deadline(&self) -> Instant {
        self.begun + self.bounds.patience + Duration::from_secs((self.size / MIN_RATE) as u64)
    }

    /// The next part of the body; `None` at its end.
    async fn next_data(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let deadline = self.deadline();
            let Ok(frame) = timeout_at(deadline, self.body.frame()).await else {
                if deadline.elapsed() > LATE {
                    // This process was stopped. What came meanwhile is read before the sender is judged.
                    self.begun = Instant::now();
                    continue;
                }
                return Err(self.late());
            };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| Refusal::new(Code::BadRequest, "the request body was cut off"))?;
            // Trailers hold no data.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    fn late(&mut self) -> Refusal {
        let seconds = self.bounds.patience.as_secs_f32();
        let text = format!("the request body did not come within {seconds} s (see --header-timeout)");
        self.refusal.take().unwrap_or_else(|| Refusal::new(Code::BadRequest, text))
    }
}

fn no_room() -> Refusal {
    metrics::limited(Limit::Memory).count();
    Refusal::new(Code::Overloaded, SPENT)
}

fn unproved_body(most: usize) -> Refusal {
    let text = format!(
        "a request body of more than {most} bytes needs a proof first: a token, an API key or the id of a session that is registered \
         with `proof` in the header `Authorization`, or a registered session that polls from this address"
    );
    Refusal::new(Code::Unauthorized, text)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io;

    use futures::stream::{self, StreamExt};

    use super::*;
    use crate::budget::Budget;

    const PATIENCE: Duration = Duration::from_secs(5);
    const KIB: usize = 1024;

    /// A body that sends these parts and then nothing more, without ending.
    fn endless(parts: Vec<&'static [u8]>) -> Body {
        let parts = stream::iter(parts).map(|part| Ok::<_, Infallible>(Bytes::from_static(part)));
        Body::from_stream(parts.chain(stream::pending()))
    }

    fn reading(body: Body, limit: usize, budget: &Budget) -> Reading {
        let permit = budget.permit(Holder::Unproved);
        Reading::new(body, BodyBounds { limit, counted: None, unproved: None, patience: PATIENCE, permit })
    }

    async fn text(body: Body, limit: usize) -> Result<String, Refusal> {
        let budget = Budget::new(Budget::MOST);
        let text = reading(body, limit, &budget).text().await?;
        Ok(text.text)
    }

    async fn code(body: Body, limit: usize) -> Code {
        text(body, limit).await.unwrap_err().code
    }

    #[tokio::test]
    async fn a_body_up_to_the_limit_is_read_whole() {
        assert_eq!(text(Body::from("hello"), 5).await.unwrap(), "hello");
        assert_eq!(text(Body::empty(), 0).await.unwrap(), "");
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
        let refusal = text(Body::from_stream(broken), 10).await.unwrap_err();
        assert!(refusal.message.contains("cut off"), "{refusal:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_body_is_refused() {
        let begun = Instant::now();
        let refusal = text(endless(vec![b"he", b"l"]), 10).await.unwrap_err();
        assert!(refusal.message.contains("within 5 s"), "{refusal:?}");
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_gets_more_time() {
        const PART: &[u8] = &[b'x'; 2 * MIN_RATE];
        let begun = Instant::now();
        text(endless(vec![PART]), 2 * PART.len()).await.unwrap_err();
        assert_eq!(begun.elapsed(), PATIENCE + Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_passed_during_a_pause_of_the_process_does_not_count() {
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        let body = Body::from_stream(receiver.map(Ok::<_, Infallible>));
        let reading = tokio::spawn(text(body, 100));
        sender.unbounded_send(Bytes::from_static(b"be")).unwrap();
        tokio::task::yield_now().await;
        // The clock jumps, and the part that came meanwhile is seen after the deadline.
        tokio::time::advance(10 * PATIENCE).await;
        tokio::task::yield_now().await;
        sender.unbounded_send(Bytes::from_static(b"gun")).unwrap();
        drop(sender);
        assert_eq!(reading.await.unwrap().unwrap(), "begun");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_waits_for_room_and_is_refused_if_none_comes() {
        const PART: &[u8] = &[b'x'; 40 * KIB];
        let budget = Budget::new(100 * KIB);
        let held = budget.try_acquire(Holder::Proved, 90 * KIB).unwrap();
        let refusal = reading(Body::from(PART), PART.len(), &budget).text().await.unwrap_err();
        assert_eq!(refusal.code, Code::Overloaded);
        assert!(refusal.message.contains("--memory-budget"), "{}", refusal.message);
        assert_eq!(reading(Body::from("small"), 10, &budget).text().await.unwrap().text, "small");
        let body = reading(Body::from(PART), PART.len(), &budget);
        let waiting = tokio::spawn(body.text());
        tokio::time::sleep(PATIENCE / 2).await;
        drop(held);
        let text = waiting.await.unwrap().unwrap();
        assert_eq!((text.len(), budget.used()), (PART.len(), PART.len()));
        drop(text);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_without_a_proof_may_send_little() {
        const MOST: usize = 64 * KIB;
        let budget = Budget::new(1 << 20);
        let send = async |size: usize| {
            let permit = budget.permit(Holder::Unproved);
            let unproved = Some(MOST);
            let bounds = BodyBounds { limit: 1 << 20, counted: None, unproved, patience: PATIENCE, permit };
            let body = Body::from(vec![b'x'; size]);
            bounds.read(body).await
        };
        assert_eq!(send(MOST).await.unwrap().len(), MOST);
        let refusal = send(MOST + 1).await.unwrap_err();
        assert_eq!(refusal.code, Code::Unauthorized);
        assert!(refusal.message.contains("proof"), "{}", refusal.message);
        assert_eq!(budget.used(), 0);
    }
}
