//! A reader that is behind: it reads the engine until it meets what the hub brings.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use sync_wrapper::SyncWrapper;
use tokio::time::sleep;

use crate::engine::{Batch, EngineError};
use crate::message::{Epoch, Gap, GapReason, Item, Seq};
use crate::subscriber::reading::{READ, ReadResult, read};
use crate::subscriber::{ReadState, Subscriber};

/// Pause before the engine is read again that does not find yet what the hub announced.
const STALE_PAUSE: Duration = Duration::from_millis(20);

impl Subscriber {
    /// One read of the engine, after a pause if there is one.
    pub(super) fn poll_catch_up(
        &mut self,
        cx: &mut Context<'_>,
        target: Seq,
    ) -> Poll<Result<(), EngineError>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let ReadResult { batch, restart } = ready!(self.poll_engine(cx))?;
        self.failure_told = false;
        let restarted = restart.is_some();
        if !restarted && let Some(gap) = self.released_gap(&batch) {
            self.backlog.push_back(Item::Gap(gap));
        }
        if let Some((epoch, floor)) = restart {
            self.restart(epoch, floor);
        }
        self.read = self.read.max(batch.cursor);
        let found_nothing = batch.items.is_empty();
        self.backlog.extend(batch.items);
        self.room = batch.room;
        if batch.more {
            return Poll::Ready(Ok(()));
        }
        if restarted || self.read >= target {
            self.state = ReadState::Live;
        } else if found_nothing {
            // Stale: the engine will find it soon. Other readers go on meanwhile.
            self.pause = Some(Box::pin(sleep(STALE_PAUSE)));
        }
        Poll::Ready(Ok(()))
    }

    /// Reads on, or goes on with the read that is under way.
    fn poll_engine(&mut self, cx: &mut Context<'_>) -> Poll<Result<ReadResult, EngineError>> {
        if let Some(batch) = self.read_at_hand() {
            return Poll::Ready(Ok(ReadResult { batch, restart: None }));
        }
        let reading = self.reading.get_or_insert_with(|| {
            let (engine, address) = (self.engine.clone(), self.handle.address().clone());
            let (cursor, epoch) = (self.read, self.epoch.clone());
            SyncWrapper::new(Box::pin(async move { read(&engine, &address, (cursor, epoch)).await }))
        });
        let read = ready!(reading.get_mut().as_mut().poll(cx));
        self.reading = None;
        Poll::Ready(read)
    }

    /// What a read finds that waits for nothing, as most do: they find nothing, or what is in memory.
    fn read_at_hand(&self) -> Option<Batch> {
        let same_epoch = || self.engine.epoch() == self.epoch;
        if self.reading.is_some() || !same_epoch() {
            return None;
        }
        self.engine.read_at_hand(self.handle.address(), self.read, READ).filter(|_| same_epoch())
    }

    /// The gap before a first read that finds messages gone which came after this reader. The engine reports none: it
    /// takes a reader without a position for a new one.
    fn released_gap(&self, batch: &Batch) -> Option<Gap> {
        if self.read > Seq::START {
            return None;
        }
        let to = self.handle.released()?;
        let found = batch.items.first().and_then(Item::seq).unwrap_or(batch.cursor);
        (found > to || batch.items.is_empty() && found == to).then_some(Gap {
            from: self.read,
            to,
            reason: GapReason::Acknowledged,
        })
    }

    /// Begins at the ack floor of another epoch.
    fn restart(&mut self, epoch: Epoch, floor: Seq) {
        self.drop_stored();
        self.ahead = None;
        self.backlog.push_back(Item::Gap(Gap { from: self.delivered, to: floor, reason: GapReason::Epoch }));
        self.epoch = epoch;
        self.read = floor;
        self.delivered = floor;
    }
}
