//! What a reader is told of the messages behind one that is not admitted: receipts and replies.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use sync_wrapper::SyncWrapper;

use crate::engine::{Batch, Engine, EngineError};
use crate::hub::HubEvent;
use crate::message::{Address, Item, Publication, Seq};

/// How many items one read of the engine asks for.
const READ: usize = 64;

/// How many reads of the engine in a row look for receipts and replies. The rest is looked through when more comes.
const MAX_READS: usize = 4;

/// Pause before the engine is read again that does not find yet what the hub announced, and after a failure.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks through what comes behind a message that is not admitted. Everything is read again in its place later.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Up to here everything was looked at.
    seen: Seq,
    /// The hub announced this.
    target: Seq,
    /// Whether the engine has more than `seen`.
    is_behind: bool,
    /// How many reads were made in a row.
    reads: usize,
    /// What was found in the last read.
    found: VecDeque<Arc<Publication>>,
    /// A read that is under way. It goes on when its future is dropped.
    reading: Option<SyncWrapper<BoxFuture<'static, Result<Batch, EngineError>>>>,
}

impl Ahead {
    /// Looks at everything after a seq.
    pub(super) fn after(seen: Seq) -> Self {
        Self { seen, target: seen, is_behind: true, reads: 0, found: VecDeque::new(), reading: None }
    }

    /// The next receipt or reply after what was delivered, if one is found.
    pub(super) fn take(&mut self, delivered: Seq) -> Option<Arc<Publication>> {
        self.seen = self.seen.max(delivered);
        loop {
            let found = self.found.pop_front()?;
            if found.seq() > Some(delivered) {
                return Some(found);
            }
        }
    }

    /// Whether the engine is to be read before anything else.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Notes what the hub brings. A receipt or a reply whose turn it is, is found at once.
    pub(super) fn note(&mut self, event: &HubEvent) {
        match event {
            HubEvent::Stored { prev, publication } => {
                let Some(seq) = publication.seq().filter(|seq| *seq > self.seen) else { return };
                if *prev > self.seen || self.is_behind {
                    return self.missed(seq);
                }
                self.seen = seq;
                self.look_at(publication);
            }
            HubEvent::Available(seq) if *seq > self.seen => self.missed(*seq),
            _ => {}
        }
    }

    /// The hub announced this seq, or dropped it.
    pub(super) fn missed(&mut self, seq: Seq) {
        (self.target, self.is_behind, self.reads) = (self.target.max(seq), true, 0);
    }

    fn look_at(&mut self, publication: &Arc<Publication>) {
        if !publication.kind().is_message() {
            self.found.push_back(Arc::clone(publication));
        }
    }

    /// One read of the engine.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, engine: &Engine, address: &Address) -> Poll<()> {
        let reading = self.reading.get_or_insert_with(|| {
            let (engine, address, seen) = (engine.clone(), address.clone(), self.seen);
            SyncWrapper::new(Box::pin(async move {
                let read = engine.read(&address, seen, READ).await;
                let is_stale = read.as_ref().is_ok_and(|batch| batch.items.is_empty());
                if is_stale || read.is_err() {
                    tokio::time::sleep(PAUSE).await;
                }
                read
            }))
        });
        let read = ready!(reading.get_mut().as_mut().poll(cx));
        self.reading = None;
        self.reads += 1;
        let Ok(batch) = read else {
            self.is_behind = self.reads < MAX_READS;
            return Poll::Ready(());
        };
        for item in &batch.items {
            if let Item::Message(publication) = item {
                self.look_at(publication);
            }
        }
        self.seen = self.seen.max(batch.cursor);
        self.is_behind = (batch.more || self.seen < self.target) && self.reads < MAX_READS;
        Poll::Ready(())
    }
}
