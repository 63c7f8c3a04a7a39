//! How much is stored, counted when somebody asks.

use crate::engine::Contents;
use crate::engine::embedded::index::Index;

impl Index {
    /// Counts what is stored. One shard after the other is locked, each while its addresses are looked at.
    pub(in crate::engine::embedded) fn contents(&self) -> Contents {
        let mut contents = Contents {
            bytes: self.totals.bytes(),
            most_bytes: self.settings.total_bytes,
            ..Contents::default()
        };
        for shard in self.shards.each() {
            shard.logs.add_to(&mut contents);
        }
        if let Some(intake) = self.intake.lock() {
            (contents.queued, contents.queued_bytes) = (intake.queued(), intake.queued_bytes());
        }
        contents
    }
}
