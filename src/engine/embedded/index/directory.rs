//! Registrations of sessions, and what their ends do to mailboxes.

use std::time::Duration;

use crate::engine::embedded::index::shards::Shard;
use crate::engine::embedded::index::{FollowUp, Index, broken, expiry};
use crate::engine::embedded::outbox::Filled;
use crate::engine::registrations::{RegistrationChange, RegistrationTable};
use crate::engine::{Register, RegisterError, Registration, RegistrationSource};
use crate::hub::{EndReason, Hubs};
use crate::message::{Address, Seq, SessionId};

/// How often it is looked whether something of a former owner is left.
pub(super) const FORMER_RECHECK: Duration = Duration::from_secs(60);

impl Index {
    /// Looks registered sessions up. `None` once a panic has broken the store.
    pub(in crate::engine::embedded) fn sessions<R>(
        &self,
        look: impl FnOnce(&RegistrationTable) -> R,
    ) -> Option<R> {
        (!self.breaker.is_broken()).then(|| look(&self.sessions.read()))
    }

    /// A registration has expired, or it is time to look again at what was left of it. The shard of the session is locked.
    pub(super) fn expire_registration(
        &self,
        shard: &Shard,
        session: &SessionId,
        now: u64,
        is_read: impl Fn(&Address) -> bool,
        follow: &mut FollowUp,
    ) {
        let left = self.left_of(shard, session, now, is_read);
        let was_former = |known: Registration| matches!(known.source, RegistrationSource::Former { .. });
        // To look again is not worth a write.
        match left.is_some() && self.sessions.entry(session).is_some_and(was_former) {
            true => self.sessions.set(session, left),
            false => self.set_registration(session, left, follow),
        }
    }

    /// What is left of a registration that ends: its owner, if something is for that owner alone. Readers count, since
    /// they end when another owner comes. `shard` is that of the session.
    fn left_of(
        &self,
        shard: &Shard,
        session: &SessionId,
        now: u64,
        is_read: impl Fn(&Address) -> bool,
    ) -> Option<Registration> {
        let known = self.sessions.entry(session)?;
        let address = Address::Session(session.clone());
        let is_left = shard.logs.get(&address).is_some_and(|log| !log.is_empty())
            || self.receipts.knows(&address)
            || is_read(&address);
        is_left.then(|| known.into_former(self.newest(), expiry(now, FORMER_RECHECK)))
    }

    /// What a registration changes, except for what is left of a session that gives way; see [`Self::gives_way`].
    pub(super) fn plan(
        &self,
        register: &Register,
        hubs: &Hubs,
    ) -> Result<Option<RegistrationChange>, RegisterError> {
        let (limit, now) = (self.settings.sessions_per_user, self.clock.now());
        let is_connected = |session: &SessionId| hubs.is_read(&Address::Session(session.clone()));
        self.sessions.read().plan(register, (now, self.newest()), limit, is_connected)
    }

    /// Adds what is left of the session that gives way. `shard` is that of this session.
    pub(super) fn gives_way(&self, shard: &Shard, other: &SessionId, left: &mut Option<Registration>) {
        *left = self.left_of(shard, other, self.clock.now(), |_| false);
    }

    /// Registers a session. Returns whether that changes anything, and what is to be published.
    ///
    /// # Errors
    /// Why it is refused.
    pub(in crate::engine::embedded) fn register(
        &self,
        register: &Register,
        hubs: &Hubs,
    ) -> Result<(bool, Filled), RegisterError> {
        let mut follow = FollowUp::default();
        let changes = self.try_register(register, hubs, &mut follow)?;
        Ok((changes, self.follow_up(follow)))
    }

    /// Locks all shards: another session may have to give way.
    fn try_register(
        &self,
        register: &Register,
        hubs: &Hubs,
        follow: &mut FollowUp,
    ) -> Result<bool, RegisterError> {
        let mut shards = self.shards.lock_all().ok_or_else(broken)?;
        let intake = self.intake.lock().ok_or_else(broken)?;
        if intake.changes.is_promised_to_other(&register.session, register.user.as_ref()) {
            return Err(RegisterError::Taken);
        }
        drop(intake);
        let change = self.plan(register, hubs)?;
        let Some(RegistrationChange { registration, gives_way, takes_over }) = change else {
            return Ok(false);
        };
        if let Some((other, mut left)) = gives_way {
            let shard = shards.of(&Address::Session(other.clone()));
            self.gives_way(shard, &other, &mut left);
            self.set_registration(&other, left, follow);
        }
        self.set_registration(&register.session, Some(registration), follow);
        if let Some(through) = takes_over {
            let shard = shards.of_mut(&Address::Session(register.session.clone()));
            self.take_over(shard, &register.session, through, hubs, follow);
        }
        Ok(true)
    }

    /// Another user has a session now. What was for the former owner up to `through` is deleted, and the readers end.
    pub(super) fn take_over(
        &self,
        shard: &mut Shard,
        session: &SessionId,
        through: Seq,
        hubs: &Hubs,
        follow: &mut FollowUp,
    ) {
        let address = Address::Session(session.clone());
        self.receipts.void(&address, through);
        if shard.logs.end(&address, through) {
            let removed = self.remove_ended(shard, &address, follow);
            self.count_expired(removed);
            self.note_floor(shard, &address, follow);
        }
        hubs.end(&address, EndReason::OwnerChanged);
    }

    fn set_registration(&self, session: &SessionId, to: Option<Registration>, follow: &mut FollowUp) {
        self.sessions.set(session, to.clone());
        if self.is_on_disk
            && let Some(mut intake) = self.intake.lock()
        {
            intake.writes.registrations.insert(session.clone(), to);
            follow.wakes |= intake.must_wake_writer();
        }
    }

    /// Ends a session: its registration and its mailbox. No token brings it back before `revoked_for` is over, nor before
    /// its registration and all tokens that are known would have ended. Returns what is to be published.
    pub(in crate::engine::embedded) fn end(&self, session: &SessionId, revoked_for: Duration) -> Filled {
        let mut follow = FollowUp::default();
        if let Some(mut shard) = self.shards.lock(&Address::Session(session.clone())) {
            self.set_registration(session, self.revoked(session, revoked_for), &mut follow);
            self.end_mailbox(&mut shard, session, &mut follow);
        }
        self.follow_up(follow)
    }

    /// What becomes of the registration of a session that ends.
    pub(super) fn revoked(&self, session: &SessionId, revoked_for: Duration) -> Option<Registration> {
        let now = self.clock.now();
        let sessions = self.sessions.read();
        let known = sessions.entry(session);
        let registered_until = sessions.get(session, now).map_or(0, |known| known.expires_at);
        let tokens_until = known.map_or(0, |known| known.tokens_until);
        let expires_at = registered_until.max(tokens_until).max(expiry(now, revoked_for));
        let (source, since) = (RegistrationSource::Revoked, self.newest());
        let revoked = Registration { user: None, expires_at, source, tokens_until, since };
        (!revoked_for.is_zero()).then_some(revoked)
    }

    pub(super) fn end_mailbox(&self, shard: &mut Shard, session: &SessionId, follow: &mut FollowUp) {
        let (address, newest) = (Address::Session(session.clone()), self.newest());
        self.receipts.void(&address, newest);
        if shard.logs.end(&address, newest) {
            self.remove_ended(shard, &address, follow);
            self.note_floor(shard, &address, follow);
        }
    }
}
