//! What authors may store through this node.
//!
//! NATS says how much a stream holds, and not whose it is. So a node does not know what is left of what an author has stored. While a
//! stream is more than half full, it bounds what it stores for the author in an hour.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::{EngineError, Share, Usage};
use crate::message::SenderName;
use crate::sync::{lock, shrink};

/// An author may store its share again after this time, and a part of it after a part of the time.
const REFILL: Duration = Duration::from_secs(3600);

/// What NATS takes for a message beside its body: headers, subject, and a record of its own. In bytes.
pub(super) const BESIDE: usize = 220;

/// What a stream holds, and may hold.
#[derive(Debug)]
struct Fullness {
    /// What it may hold, in bytes.
    limit: usize,
    /// What it held when NATS was asked, and what this node has sent since, in bytes.
    used: AtomicUsize,
    /// Whether it refuses when it is full. A history drops its oldest messages.
    refuses: bool,
}

/// What authors may store through this node.
#[derive(Debug)]
pub(super) struct Allowances {
    /// What the whole store may hold, in bytes.
    total: usize,
    streams: Vec<Fullness>,
    authors: Mutex<HashMap<SenderName, Spent>>,
}

/// What an author has stored through this node: its bytes at a time. They get fewer since then.
#[derive(Debug, Clone, Copy)]
struct Spent {
    bytes: usize,
    at: Instant,
}

impl Allowances {
    /// For streams of mailboxes, and as many of histories, that may hold so many bytes each.
    pub(super) fn new(total: usize, shards: usize, (mailboxes, histories): (usize, usize)) -> Self {
        let stream = |limit, refuses| Fullness { limit, used: AtomicUsize::new(0), refuses };
        let streams = (0..shards).map(|_| stream(mailboxes, true));
        let streams = streams.chain((0..shards).map(|_| stream(histories, false))).collect();
        Self { total, streams, authors: Mutex::default() }
    }

    /// Notes how many bytes a stream holds.
    pub(super) fn measured(&self, stream: usize, bytes: usize) {
        if let Some(fullness) = self.streams.get(stream) {
            fullness.used.store(bytes, Ordering::Relaxed);
        }
    }

    fn whole(&self) -> Usage {
        Usage { messages: usize::MAX, bytes: self.total }
    }

    /// What is left of what an author has spent.
    fn left(&self, spent: Spent) -> usize {
        let share = Share::Stored.of(self.whole()).bytes as u128;
        let refilled = share * spent.at.elapsed().as_millis() / REFILL.as_millis();
        spent.bytes.saturating_sub(usize::try_from(refilled).unwrap_or(usize::MAX))
    }

    /// Takes room in a stream for so many bytes of an author.
    ///
    /// # Errors
    /// [`EngineError::QuotaExceeded`], [`EngineError::StoreFull`].
    pub(super) fn take(
        &self,
        stream: usize,
        author: Option<&SenderName>,
        bytes: usize,
    ) -> Result<(), EngineError> {
        let Some(Fullness { limit, used, refuses }) = self.streams.get(stream) else { return Ok(()) };
        if let Some(author) = author {
            let now = used.load(Ordering::Relaxed);
            let mut authors = lock(&self.authors);
            let own = authors.get(author).map_or(0, |spent| self.left(*spent));
            // A stream is a part of the store: it counts as if all of them were as full.
            let is_half_full = now.saturating_add(bytes) > limit / 2;
            let all = Usage { messages: 0, bytes: if is_half_full { self.total } else { 0 } };
            let messages = usize::from(own > 0);
            Share::Stored.check(
                self.whole(),
                all,
                Usage { messages, bytes: own },
                Usage { messages: 1, bytes },
            )?;
            if *refuses && now.saturating_add(bytes) > limit - limit / 10 {
                return Err(EngineError::StoreFull { limit: self.whole().for_authors().bytes });
            }
            authors.insert(author.clone(), Spent { bytes: own + bytes, at: Instant::now() });
        }
        used.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets the authors that may store their whole share again.
    pub(super) fn forget(&self) {
        let mut authors = lock(&self.authors);
        authors.retain(|_, spent| self.left(*spent) > 0);
        shrink(&mut authors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::OverShare;

    /// Two streams of mailboxes that hold 1,200 bytes each, and two of histories that hold 400.
    fn allowances() -> Allowances {
        Allowances::new(3200, 2, (1200, 400))
    }

    fn name(name: &str) -> SenderName {
        SenderName::new(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_author_stores_its_share_an_hour_while_a_stream_is_more_than_half_full() {
        let (store, ann, bob) = (allowances(), name("ann"), name("bob"));
        for _ in 0..6 {
            store.take(0, Some(&ann), 100).unwrap();
        }
        let refused = store.take(0, Some(&ann), 10).unwrap_err();
        let EngineError::QuotaExceeded(OverShare { share: Share::Stored, used, limit }) = refused else {
            panic!()
        };
        assert_eq!((used.bytes, limit.bytes), (600, 200));
        store.take(1, Some(&ann), 100).unwrap();
        store.take(0, Some(&bob), 200).unwrap();
        assert!(store.take(0, Some(&bob), 1).is_err());
        // 700 bytes of ann are 200 again after two and a half hours.
        tokio::time::advance(REFILL * 5 / 2).await;
        store.forget();
        assert!(store.take(0, Some(&ann), 1).is_err());
        store.take(0, Some(&bob), 200).unwrap();
        tokio::time::advance(REFILL / 2).await;
        store.take(0, Some(&ann), 50).unwrap();
        // NATS says that there is room.
        store.measured(0, 100);
        store.take(0, Some(&ann), 300).unwrap();
        tokio::time::advance(REFILL * 4).await;
        store.forget();
        assert!(lock(&store.authors).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenth_of_the_mailboxes_is_kept_for_backends() {
        let store = allowances();
        store.measured(0, 1070);
        store.take(0, Some(&name("ann")), 10).unwrap();
        let refused = store.take(0, Some(&name("bob")), 1).unwrap_err();
        assert_eq!(refused, EngineError::StoreFull { limit: 2880 });
        store.take(0, None, 100).unwrap();
        store.measured(2, 400);
        store.take(2, Some(&name("bob")), 100).unwrap();
        assert!(store.take(2, Some(&name("bob")), 101).is_err(), "it would push out all others");
    }
}
