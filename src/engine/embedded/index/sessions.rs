//! Registered sessions, and what their end does to their mailboxes.

use super::*;

impl Index {
    /// Registers a session; answers whether that changes anything.
    pub(in crate::engine::embedded) fn register(
        &mut self,
        register: &Register,
        hubs: &Hubs,
    ) -> Result<bool, RegisterError> {
        let most = self.settings.sessions_per_user;
        let (to, gives_way) = self.directory.plan(register, self.settings.clock.now(), most, |session| {
            hubs.is_read(&Address::Session(session.clone()))
        })?;
        if let Some(other) = gives_way {
            self.set_registration(&other, None);
        }
        let changes = to.is_some();
        if changes {
            self.set_registration(&register.session, to);
        }
        Ok(changes)
    }

    pub(super) fn set_registration(&mut self, session: &SessionId, to: Option<Registration>) {
        self.directory.set(session, to.clone());
        if self.on_disk {
            self.gone.registrations.insert(session.clone(), to);
        }
    }

    /// Ends a session: its registration and its mailbox. Tokens cannot bring it back before `revoked_for` is over, nor as
    /// long as one that it came with may be good.
    pub(in crate::engine::embedded) fn end(&mut self, session: &SessionId, revoked_for: Duration) {
        let expires_at =
            self.registration(session).map_or(0, |known| known.expires_at).max(self.end_of(revoked_for));
        let revoked = Registration { user: None, expires_at, source: RegistrationSource::Revoked };
        self.set_registration(session, (!revoked_for.is_zero()).then_some(revoked));
        if self.reserved_receipts.remove(session).is_some() {
            // Nobody reads the receipts of what it sent.
            self.receipts.retain(|_, (from, _)| from != session);
        }
        self.purge(&Address::Session(session.clone()));
    }

    /// Deletes everything on a log; what is not committed yet is deleted as soon as it is.
    fn purge(&mut self, address: &Address) {
        let Some(log) = self.logs.get_mut(address) else { return };
        log.position.floor = log.last();
        log.position.newest = log.position.floor;
        self.drop_ended(address);
        self.note_floor(address);
    }

    /// Drops what is committed and below the floor.
    pub(super) fn drop_ended(&mut self, address: &Address) {
        let Some(log) = self.logs.get_mut(address) else { return };
        let through = log.position.floor.min(self.committed);
        let end = log.entries.partition_point(|entry| entry.seq <= through);
        let dropped: Vec<LogEntry> = log.entries.drain(..end).collect();
        log.bytes -= dropped.iter().map(|entry| entry.bytes as usize).sum::<usize>();
        for entry in &dropped {
            self.drop_entry(entry, Outcome::Expired);
        }
        self.list_if_empty(address);
    }

    /// The next commit tells this waiter.
    pub(in crate::engine::embedded) fn wait_for_commit(&mut self, waiter: Waiter) {
        self.gone.waiters.push(waiter);
    }

    pub(in crate::engine::embedded) fn registration(&self, session: &SessionId) -> Option<&Registration> {
        self.directory.get(session, self.settings.clock.now())
    }

    pub(in crate::engine::embedded) fn is_ended(&self, session: &SessionId) -> bool {
        self.directory.is_revoked(session, self.settings.clock.now())
    }

    pub(in crate::engine::embedded) fn handles(&self) -> &Handles {
        &self.handles
    }

    pub(in crate::engine::embedded) fn session_of(&self, handle: Handle) -> Option<&SessionId> {
        self.directory.session_of(handle, self.settings.clock.now())
    }

    /// How many messages wait on a mailbox's log.
    pub(in crate::engine::embedded) fn waiting(&self, session: &SessionId) -> usize {
        let log = self.logs.get(&Address::Session(session.clone()));
        log.map_or(0, |log| log.committed(self.committed))
    }

    pub(in crate::engine::embedded) fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        self.directory.sessions_of(user, self.settings.clock.now())
    }
}
