//! One read of the engine.

use crate::engine::{Batch, Engine, EngineError};
use crate::message::{Address, Epoch, Seq};

/// How many items one read of the engine asks for.
pub(super) const READ: usize = 64;

/// What a read of the engine found.
pub(super) struct ReadResult {
    pub(super) batch: Batch,
    /// The epoch now, and the ack floor where reading began, if the epoch has changed.
    pub(super) restart: Option<(Epoch, Seq)>,
}

/// Reads the engine from where a reader is, or from the ack floor if the epoch is another one by now.
pub(super) async fn read(
    engine: &Engine,
    address: &Address,
    (cursor, reader_epoch): (Seq, Epoch),
) -> Result<ReadResult, EngineError> {
    loop {
        let epoch = engine.epoch();
        let restart = match epoch == reader_epoch {
            true => None,
            false => Some((epoch.clone(), engine.position(address).await.floor)),
        };
        let after = restart.as_ref().map_or(cursor, |(_, floor)| *floor);
        let batch = engine.read(address, after, READ).await?;
        // Seqs of two epochs do not go together.
        if epoch == engine.epoch() {
            return Ok(ReadResult { batch, restart });
        }
    }
}
