//! Fills one stream. What stands at a seq depends on the store alone, so that this can be repeated at any time.
//!
//! Each message names the seq before its own. NATS stores it there or nowhere: none is left out, stored twice, or in another
//! place, whatever became of an earlier attempt.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::engine::nats::error::AskError;
use crate::engine::nats::link::{Answers, Link, stored};
use crate::engine::nats::migration::error::MigrateError;
use crate::engine::nats::streams::{info, state};

/// Messages, and their bytes, that are sent and have no answer yet.
const WINDOW: usize = 256;
const WINDOW_BYTES: usize = 4 << 20;

/// Pause before a stream is looked at that did not answer.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// How long a stream may take nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The number of NATS' error for a message that does not follow the last one.
const WRONG_SEQ: u64 = 10_071;

/// A message for a stream.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) subject: String,
    /// How long NATS keeps it, if not for as long as the stream keeps everything.
    pub(super) lasts: Option<Duration>,
    pub(super) body: Bytes,
}

/// A stream that is filled.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) link: &'a Link,
    pub(super) stream: &'a str,
    /// The seq before its first message.
    pub(super) origin: u64,
    /// How many messages it holds from an earlier attempt.
    pub(super) already: u64,
    /// Counts what is stored, in all streams.
    pub(super) done: &'a AtomicU64,
}

/// A message on its way.
#[derive(Debug)]
struct Sent {
    item: Outgoing,
    seq: u64,
    /// Its answer, unless it could not be sent.
    answer: Result<Answers, AskError>,
}

impl Target<'_> {
    /// Stores all these messages, in this order, from the first one of the stream on.
    ///
    /// # Errors
    /// [`MigrateError::Refused`], [`MigrateError::Stalled`].
    pub(super) async fn fill(&self, mut items: mpsc::Receiver<Outgoing>) -> Result<(), MigrateError> {
        let (mut seq, mut sent, mut stored_at) = (self.origin, VecDeque::new(), Instant::now());
        loop {
            while sent.len() < WINDOW && on_the_way(&sent) < WINDOW_BYTES {
                let item = match sent.is_empty() {
                    true => items.recv().await,
                    false => items.try_recv().ok(),
                };
                let Some(item) = item else { break };
                seq += 1;
                if seq <= self.origin + self.already {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                sent.push_back(self.send(item, seq).await);
            }
            let Some(first) = sent.front_mut() else { return Ok(()) };
            let stored = match answered(first).await {
                Ok(()) => Ok(sent.drain(..1).len()),
                Err(AskError::Refused { code, text }) if code != WRONG_SEQ => {
                    let (stream, reason) = (self.stream.to_owned(), text.to_string());
                    return Err(MigrateError::Refused { stream, reason });
                }
                Err(error) if stored_at.elapsed() > PATIENCE => Err(error),
                Err(_) => self.settle(&mut sent).await,
            };
            match stored {
                Ok(0) => {}
                Ok(stored) => {
                    stored_at = Instant::now();
                    self.done.fetch_add(stored as u64, Ordering::Relaxed);
                }
                Err(error) if stored_at.elapsed() > PATIENCE => {
                    let (stream, seconds) = (self.stream.to_owned(), PATIENCE.as_secs());
                    return Err(MigrateError::Stalled {
                        stream,
                        seconds,
                        reason: error.reason().to_string(),
                    });
                }
                Err(_) => {}
            }
        }
    }

    async fn send(&self, item: Outgoing, seq: u64) -> Sent {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Sequence", (seq - 1).to_string());
        if let Some(lasts) = item.lasts {
            // Part of a second counts as one.
            headers.insert("Nats-TTL", lasts.as_secs().saturating_add(1).to_string());
        }
        let answer = self.link.ask(item.subject.clone(), Some(headers), item.body.clone(), 1).await;
        Sent { item, seq, answer }
    }

    /// Finds out what is stored of what was sent, and sends the rest again. Answers how many messages are stored.
    async fn settle(&self, sent: &mut VecDeque<Sent>) -> Result<usize, AskError> {
        sleep(PAUSE).await;
        // What was sent before may still arrive later. Then what is sent again is refused, and this is repeated.
        let last = state(&info(self.link, self.stream).await?).last;
        let stored = sent.partition_point(|sent| sent.seq <= last);
        sent.drain(..stored);
        for Sent { item, seq, .. } in std::mem::take(sent) {
            sent.push_back(self.send(item, seq).await);
        }
        Ok(stored)
    }
}

/// Bytes of what has no answer yet.
fn on_the_way(sent: &VecDeque<Sent>) -> usize {
    sent.iter().map(|sent| sent.item.body.len()).sum()
}

/// Waits until a message is stored at its place.
async fn answered(sent: &mut Sent) -> Result<(), AskError> {
    let answer = match &mut sent.answer {
        Ok(answers) => answers.next().await?,
        Err(error) => return Err(error.clone()),
    };
    match stored(&answer)?.seq == sent.seq {
        true => Ok(()),
        false => Err(AskError::Unknown("it is stored elsewhere".into())),
    }
}
