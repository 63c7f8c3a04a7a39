//! One read of the engine. It goes on when the caller drops the future that waits for it.

use sync_wrapper::SyncWrapper;

use crate::engine::{Batch, Engine, EngineError};
use crate::message::Address;
use crate::subscriber::{READ, ReadResult, Start, Subscriber};

impl Subscriber {
    /// Reads on, or goes on with the read that is under way.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn read_engine(&mut self) -> Result<ReadResult, EngineError> {
        if let Some(batch) = self.read_at_hand() {
            return Ok(ReadResult { batch, restart: None });
        }
        let reading = self.reading.get_or_insert_with(|| {
            let (engine, address) = (self.engine.clone(), self.handle.address().clone());
            let start = Start { cursor: self.read, epoch: self.epoch.clone() };
            SyncWrapper::new(Box::pin(async move { read(&engine, &address, start).await }))
        });
        let read = reading.get_mut().await;
        self.reading = None;
        read
    }

    /// What a read finds that waits for nothing, as most do: they find nothing, or what is in memory.
    fn read_at_hand(&self) -> Option<Batch> {
        let same_epoch = || self.engine.epoch() == self.epoch;
        if self.reading.is_some() || !same_epoch() {
            return None;
        }
        self.engine.read_at_hand(self.handle.address(), self.read, READ).filter(|_| same_epoch())
    }
}

/// Reads the engine from where a reader is, or from the ack floor if the epoch is another one by now.
async fn read(engine: &Engine, address: &Address, start: Start) -> Result<ReadResult, EngineError> {
    loop {
        let epoch = engine.epoch();
        let restart = match epoch == start.epoch {
            true => None,
            false => Some((epoch.clone(), engine.position(address).await.floor)),
        };
        let after = restart.as_ref().map_or(start.cursor, |(_, floor)| *floor);
        let batch = engine.read(address, after, READ).await?;
        // Seqs of two epochs do not go together.
        if epoch == engine.epoch() {
            return Ok(ReadResult { batch, restart });
        }
    }
}
