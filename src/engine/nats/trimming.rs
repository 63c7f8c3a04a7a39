//! Acknowledgements: they are stored as floors at once, and what they cover is deleted later.
//!
//! NATS knows an id again over a restart only while its message is stored. So what is acknowledged stays for the window in which ids
//! count.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use tokio::time::sleep;

use crate::engine::nats::envelope;
use crate::engine::nats::error::AskError;
use crate::engine::nats::floors::{Floor, MOST_HOLES};
use crate::engine::nats::link::Stored;
use crate::engine::nats::names::Place;
use crate::engine::nats::node::Core;
use crate::engine::nats::receipting::Leaving;
use crate::engine::nats::streams::DAY;
use crate::message::{Address, Seq};
use crate::metrics;

/// How long acknowledgements are collected before a floor is stored.
const COLLECT: Duration = Duration::from_millis(50);

/// Pause before a floor is stored again after a failure.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);

/// How often mailboxes are looked for that can be purged.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

/// The number of NATS' error for a record that another node has changed.
const WRONG_SEQ: u64 = 10_071;

impl Core {
    /// See [`crate::engine::Engine::trim`].
    pub(super) fn trim(self: &Arc<Self>, address: &Address, through: Seq) {
        let place = self.place(address);
        if place.floor.is_none() {
            return;
        }
        // Not what comes later. No acknowledgement is above what this node knows.
        let through = through.min(self.known_newest(place.stream));
        self.raise(address, place, &Floor::acked(through));
    }

    /// Raises the floor of a mailbox.
    pub(super) fn raise(self: &Arc<Self>, address: &Address, place: Place, to: &Floor) {
        let Some(raise) = self.floors.raise(address, to, self.settings.dedup_window) else { return };
        let through = to.acknowledged();
        self.feeds.trimmed(address, through);
        if raise.store {
            tokio::spawn(Arc::clone(self).store_floor(address.clone(), place.clone()));
        }
        if raise.purge {
            let core = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = core.purge_acknowledged(&place, through).await {
                    tracing::debug!(reason = %error.reason(), "acknowledged messages are deleted later");
                }
            });
        }
    }

    /// Stores the floor of a mailbox until no higher one came meanwhile.
    async fn store_floor(self: Arc<Self>, address: Address, place: Place) {
        let Some(subject) = place.floor.clone() else { return };
        tokio::select! {
            () = sleep(COLLECT) => {}
            () = self.stop.cancelled() => {}
        }
        while let Some((floor, stored)) = self.floors.to_store(&address) {
            let done = match stored {
                None => self.learn_floor(&address, &subject).await.map(|()| false),
                Some(stored) => self.replace_floor(&address, &place, floor, stored).await,
            };
            match done {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) if error.is(WRONG_SEQ) => self.floors.doubt(&address),
                Err(error) => {
                    tracing::debug!(reason = %error.reason(), "an acknowledgement is stored later");
                    if self.stop.is_cancelled() {
                        return;
                    }
                    sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }

    /// Finds out what the record of a floor says now.
    async fn learn_floor(&self, address: &Address, subject: &str) -> Result<(), AskError> {
        let (floor, revision) = self.floor_record(subject).await?.unwrap_or_default();
        self.floors.learn(address, floor, revision);
        Ok(())
    }

    /// Stores a floor in place of a record. Answers whether it is still the newest one. First come the receipts: if this node
    /// ends in between, another one makes them again, with the same ids.
    async fn replace_floor(
        self: &Arc<Self>,
        address: &Address,
        place: &Place,
        floor: Floor,
        (before, revision): (Floor, u64),
    ) -> Result<bool, AskError> {
        let Some(subject) = &place.floor else { return Ok(true) };
        if floor == before {
            return Ok(self.floors.stored(address, &floor, revision));
        }
        let range = (before.acknowledged(), floor.acknowledged());
        // What came here without a hole needs no read.
        if !self.feeds.asks_for_nothing(address, range) {
            self.emit_receipts(address, place, range, Leaving::Acknowledged).await?;
            self.feeds.answered(address, range.1);
        }
        let stored = self.write_floor(subject, &floor, revision, None).await?;
        Ok(self.floors.stored(address, &floor, stored.seq))
    }

    /// Stores a floor in place of the record with this seq. NATS deletes it after a while if `lasts` says so.
    pub(super) async fn write_floor(
        &self,
        subject: &str,
        floor: &Floor,
        revision: u64,
        lasts: Option<Duration>,
    ) -> Result<Stored, AskError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
        if let Some(lasts) = lasts {
            headers.insert("Nats-TTL", lasts.as_secs().max(1).to_string());
        }
        let body = serde_json::to_vec(floor).expect("numbers always encode");
        self.link.store(subject, headers, body.into()).await
    }

    /// Deletes what is acknowledged once the window is over in which its ids count.
    pub(super) async fn purge_when_due(self: Arc<Self>) {
        let window = self.settings.dedup_window;
        loop {
            sleep(PURGE_INTERVAL).await;
            while let Some((address, floor)) = self.floors.next_due(window) {
                self.purge_due(&address, &floor).await;
            }
            self.directory.lock().forget(self.now());
            self.allowances.forget();
            if let Some(moved) = &self.moved {
                moved.forget(self.now());
            }
        }
    }

    /// Deletes what a mailbox holds up to `through`, where its reader has acknowledged it.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn purge_acknowledged(&self, place: &Place, through: Seq) -> Result<(), AskError> {
        self.purge(place, through).await.map(|purged| metrics::ACKNOWLEDGED.add(purged))
    }

    async fn purge_due(&self, address: &Address, floor: &Floor) {
        let place = self.place(address);
        let window = self.settings.dedup_window;
        if let Err(error) = self.purge_acknowledged(&place, floor.acknowledged()).await {
            tracing::debug!(reason = %error.reason(), "acknowledged messages are deleted later");
            self.floors.retry(address, window);
            return;
        }
        // From now on the record is needed only by readers with an old cursor.
        if let Some(revision) = self.floors.forget(address, floor, window)
            && let Some(subject) = &place.floor
            && let Err(error) = self.write_floor(subject, floor, revision, Some(DAY)).await
        {
            tracing::debug!(reason = %error.reason(), "a floor stays for longer");
        }
    }

    /// Makes room in a mailbox that is full: deletes what is acknowledged, and what has expired, of which readers are told.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn make_room(
        self: &Arc<Self>,
        address: &Address,
        place: &Place,
    ) -> Result<(), AskError> {
        let floor = self.floor(address, place).await?;
        self.purge_acknowledged(place, floor.acknowledged()).await?;
        let (expired, holes) = self.expired(place, floor.acknowledged()).await?;
        if expired.is_empty() {
            return Ok(());
        }
        let range = (floor.acknowledged(), *holes.last().unwrap_or(&Seq::START));
        self.emit_receipts(address, place, range, Leaving::Expired).await?;
        self.raise(address, place.clone(), &Floor::expired(&holes));
        let stream = self.names.stream(place.stream);
        for seq in expired {
            self.delete_expired(&stream, seq).await?;
        }
        Ok(())
    }

    /// The messages above a floor that have expired, as far as a record has room for their holes, and the newest of those that
    /// follow each other.
    async fn expired(&self, place: &Place, floor: Seq) -> Result<(Vec<Seq>, Vec<Seq>), AskError> {
        let (stream, now) = (self.names.stream(place.stream), self.now());
        let (mut expired, mut holes, mut at, mut follows) = (Vec::new(), Vec::new(), floor, false);
        loop {
            let page = self.page(&stream, &place.stored, at, usize::MAX).await?;
            for (seq, message) in &page.messages {
                at = *seq;
                if envelope::summary(&message.payload).is_some_and(|found| found.expires_at > now) {
                    follows = false;
                    continue;
                }
                if follows {
                    holes.pop();
                } else if holes.len() == MOST_HOLES {
                    return Ok((expired, holes));
                }
                follows = true;
                holes.push(*seq);
                expired.push(*seq);
            }
            if page.messages.is_empty() || page.pending == 0 {
                return Ok((expired, holes));
            }
        }
    }
}
