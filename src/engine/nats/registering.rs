//! Changes of registrations: compare and set on one record for each session, so that all nodes agree.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use serde_json::json;

use crate::clock::millis;
use crate::engine::nats::directory::{Applied, Entry};
use crate::engine::nats::error::{AskError, NO_MESSAGE};
use crate::engine::nats::floors::Floor;
use crate::engine::nats::link::number;
use crate::engine::nats::node::Core;
use crate::engine::nats::receipting::Leaving;
use crate::engine::nats::streams::{DAY, info, state};
use crate::engine::registrations::RegistrationChange;
use crate::engine::{EngineError, Register, RegisterError, Registration, RegistrationSource};
use crate::hub::{Connections, EndReason};
use crate::message::{Address, Seq, SessionId};

/// How often a change is tried again that another node was faster with.
const ATTEMPTS: u32 = 20;

/// The number of NATS' error for a record that another node has changed.
const WRONG_SEQ: u64 = 10_071;

/// Entries of one answer.
const ENTRIES: usize = 256;

impl Core {
    /// Registers a session.
    pub(super) async fn register(self: &Arc<Self>, register: &Register) -> Result<Seq, RegisterError> {
        self.check_up()?;
        let mut is_confirmed = false;
        for _ in 0..ATTEMPTS {
            let newest = self.newest_if_taken_over(register).await?;
            let elsewhere = self.read_elsewhere(register).await;
            let planned = self.plan(register, newest, &elsewhere);
            let (change, revision) = match planned {
                // What this node knows may be out of date.
                Err(_) if !is_confirmed => {
                    self.catch_up().await.map_err(|error| Self::unavailable(&error))?;
                    is_confirmed = true;
                    continue;
                }
                Err(refused) => return Err(refused),
                Ok((None, _)) => return Ok(newest),
                Ok((Some(change), revision)) => (change, revision),
            };
            let RegistrationChange { registration, gives_way, takes_over } = change;
            if self.write(&register.session, &registration, revision).await? {
                if let Some((other, _)) = gives_way {
                    self.give_way(&other).await?;
                }
                if let Some(through) = takes_over {
                    self.purge_former(&register.session, through).await;
                }
                return Ok(newest);
            }
        }
        Err(busy().into())
    }

    fn plan(
        &self,
        register: &Register,
        newest: Seq,
        elsewhere: &HashSet<SessionId>,
    ) -> Result<(Option<RegistrationChange>, u64), RegisterError> {
        let (now, directory) = (self.now(), self.directory.lock());
        let revision = directory.revision(&register.session);
        let is_read = |session: &SessionId| {
            elsewhere.contains(session) || self.hubs.is_read(&Address::Session(session.clone()))
        };
        let change =
            directory.table.plan(register, (now, newest), self.settings.sessions_per_user, is_read)?;
        Ok((change, revision))
    }

    /// The sessions of a user that are read on any node, if one of them has to give way.
    async fn read_elsewhere(&self, register: &Register) -> HashSet<SessionId> {
        let Some(user) = &register.user else { return HashSet::new() };
        let sessions = self.directory.lock().table.sessions_of(user, self.now());
        if sessions.len() < self.settings.sessions_per_user || sessions.contains(&register.session) {
            return HashSet::new();
        }
        let asked = sessions.into_iter().map(async |session| {
            let is_read = self.presence(&Address::Session(session.clone())).await != Connections::default();
            is_read.then_some(session)
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The newest seq of a session's mailbox, if another owner may take it over.
    async fn newest_if_taken_over(&self, register: &Register) -> Result<Seq, RegisterError> {
        let now = self.now();
        let is_former = {
            let directory = self.directory.lock();
            directory.table.entry(&register.session).is_some()
                && directory.table.get(&register.session, now).is_none()
        };
        if !is_former {
            return Ok(Seq::START);
        }
        Ok(self.newest_of(&register.session).await?)
    }

    async fn newest_of(&self, session: &SessionId) -> Result<Seq, EngineError> {
        let place = self.place(&Address::Session(session.clone()));
        self.ask_newest(place.stream).await.map_err(|error| Self::unavailable(&error))
    }

    /// Ends a session: its registration, its readers and its mailbox.
    pub(super) async fn end(
        self: &Arc<Self>,
        session: &SessionId,
        revoked_for: Duration,
    ) -> Result<Seq, EngineError> {
        self.check_up()?;
        for _ in 0..ATTEMPTS {
            let newest = self.newest_of(session).await?;
            let (revoked, revision) = self.revoked(session, revoked_for, newest);
            if self.write(session, &revoked, revision).await? {
                // A session without a registration has readers too.
                self.hubs.end(&Address::Session(session.clone()), EndReason::SessionEnded);
                self.purge_former(session, newest).await;
                return Ok(newest);
            }
        }
        Err(busy())
    }

    /// What becomes of the registration of a session that ends. What is stored up to `newest` is nobody's.
    fn revoked(&self, session: &SessionId, revoked_for: Duration, newest: Seq) -> (Registration, u64) {
        let (now, directory) = (self.now(), self.directory.lock());
        let known = directory.table.entry(session);
        let tokens_until = known.map_or(0, |known| known.tokens_until);
        let registered_until = directory.table.get(session, now).map_or(0, |known| known.expires_at);
        let expires_at = match revoked_for.is_zero() {
            true => now,
            false => registered_until.max(tokens_until).max(now.saturating_add(millis(revoked_for))),
        };
        let source = RegistrationSource::Revoked;
        let revoked = Registration { user: None, expires_at, source, tokens_until, since: newest };
        (revoked, directory.revision(session))
    }

    /// Notes what was stored for a registration that has expired.
    pub(super) async fn close_registration(&self, session: &SessionId) -> Result<(), EngineError> {
        for _ in 0..ATTEMPTS {
            let newest = self.newest_of(session).await?;
            let (known, revision) = {
                let directory = self.directory.lock();
                let known = directory.table.entry(session).cloned();
                let known = known.filter(|known| known.expires_at <= self.now() && known.registers());
                (known, directory.revision(session))
            };
            let Some(known) = known else { return Ok(()) };
            let lasts = millis(self.options.max_ttl + DAY);
            let former = known.into_former(newest, self.now().saturating_add(lasts));
            if self.write(session, &former, revision).await? {
                return Ok(());
            }
        }
        Err(busy())
    }

    /// Ends the registration of a session whose user has too many.
    async fn give_way(&self, session: &SessionId) -> Result<(), EngineError> {
        let newest = self.newest_of(session).await?;
        let (known, revision) = {
            let directory = self.directory.lock();
            (directory.table.get(session, self.now()).cloned(), directory.revision(session))
        };
        let Some(known) = known else { return Ok(()) };
        let lasts = millis(self.options.max_ttl + DAY);
        let former = known.into_former(newest, self.now().saturating_add(lasts));
        // If another node was faster, it is another session now.
        self.write(session, &former, revision).await.map(|_| ())
    }

    /// Deletes what was for a former owner. Nobody reads it any more, whether this succeeds or not.
    async fn purge_former(self: &Arc<Self>, session: &SessionId, through: Seq) {
        let address = Address::Session(session.clone());
        let place = self.place(&address);
        let receipts = async {
            let floor = self.floor_record(place.floor.as_deref().unwrap_or_default()).await?;
            let floor = floor.map_or(Seq::START, |(floor, _)| floor.acknowledged());
            self.emit_receipts(&address, &place, (floor, through), Leaving::Ended).await
        };
        if let Err(error) = receipts.await {
            tracing::warn!(reason = %error.reason(), "receipts for what a former owner did not read are lost");
        }
        self.raise(&address, place.clone(), &Floor::acked(through));
        if let Err(error) = self.purge(&place, through).await {
            tracing::debug!(reason = %error.reason(), "what was for a former owner is deleted later");
        }
    }

    /// Stores the registration of a session in place of the entry with this seq. Answers false if another node was faster;
    /// then what it stored is known here.
    async fn write(
        &self,
        session: &SessionId,
        registration: &Registration,
        revision: u64,
    ) -> Result<bool, EngineError> {
        let now = self.now();
        // It must last longer than what it says something about.
        let lasts = Duration::from_millis(registration.expires_at.saturating_sub(now));
        let lasts = lasts.saturating_add(self.options.max_ttl).saturating_add(2 * DAY);
        let entry = Entry::new(session, registration, now.saturating_add(millis(lasts)));
        let body = serde_json::to_vec(&entry).expect("strings and numbers always encode");
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
        headers.insert("Nats-TTL", lasts.as_secs().saturating_add(1).to_string());
        let subject = self.names.registration(session);
        match self.link.store(&subject, headers, body.clone().into()).await {
            Ok(stored) => {
                self.apply(stored.seq, &body);
                Ok(true)
            }
            Err(error) if error.is(WRONG_SEQ) => {
                self.refresh(session).await.map_err(|error| Self::unavailable(&error))?;
                Ok(false)
            }
            // Whether it is stored is not known. The next attempt would find out.
            Err(error) => Err(Self::unavailable(&error)),
        }
    }

    /// Asks the leader for the entry of a session.
    async fn refresh(&self, session: &SessionId) -> Result<(), AskError> {
        let request = json!({ "last_by_subj": self.names.registration(session) });
        let what = format!("STREAM.MSG.GET.{}", self.names.directory());
        match self.link.api(&what, &request).await {
            Ok(answer) => {
                let message = &answer["message"];
                let body = STANDARD.decode(message["data"].as_str().unwrap_or_default());
                let body = body.map_err(|error| AskError::Unknown(error.to_string().into()))?;
                self.apply(message["seq"].as_u64().unwrap_or_default(), &body);
                Ok(())
            }
            Err(error) if error.is(NO_MESSAGE) => {
                self.directory.lock().remove(session);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Notes an entry of the directory with this seq.
    pub(super) fn apply(&self, revision: u64, body: &[u8]) {
        let applied = self.directory.lock().apply(revision, body);
        let Some(Applied { session, ends_readers, is_revoked }) = applied else { return };
        if ends_readers {
            let reason = if is_revoked { EndReason::SessionEnded } else { EndReason::OwnerChanged };
            self.hubs.end(&Address::Session(session.clone()), reason);
        }
        self.arrivals.wake(&session);
    }

    /// Brings the copy of the directory up to what the leader of its stream knows now.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn catch_up(&self) -> Result<(), AskError> {
        let directory = self.names.directory();
        let newest = state(&info(&self.link, &directory).await?).last;
        self.catch_up_to(newest).await
    }

    /// Reads the entries of the directory up to this seq.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn catch_up_to(&self, newest: u64) -> Result<(), AskError> {
        let (stream, subject) = (self.names.directory(), self.names.registrations());
        loop {
            let applied = self.directory.lock().applied;
            if applied >= newest {
                return Ok(());
            }
            let page = self.page(&stream, &subject, Seq(applied), ENTRIES).await?;
            for (seq, message) in &page.messages {
                self.apply(number(message, "Nats-Sequence"), &message.payload);
                let mut directory = self.directory.lock();
                directory.applied = directory.applied.max(seq.0);
            }
            let is_end = page.messages.is_empty() || page.pending == 0;
            if is_end && !self.is_directory_behind(&stream, &subject, newest).await? {
                let mut directory = self.directory.lock();
                directory.applied = directory.applied.max(newest);
                return Ok(());
            }
        }
    }

    /// Whether a copy of the stream that is behind has answered, so that entries are missing.
    async fn is_directory_behind(&self, stream: &str, subject: &str, newest: u64) -> Result<bool, AskError> {
        let applied = self.directory.lock().applied;
        if applied >= newest || self.options.replicas == 1 {
            return Ok(false);
        }
        self.leader_has(stream, subject, Seq(applied)).await
    }

    fn check_up(&self) -> Result<(), EngineError> {
        if let Some(reason) = self.refusing() {
            return Err(EngineError::Unavailable { reason });
        }
        Ok(())
    }
}

fn busy() -> EngineError {
    EngineError::Unavailable { reason: "other nodes change this session at the same time".into() }
}
