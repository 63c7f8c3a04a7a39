//! The registered sessions, as all shards look them up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{RwLock, RwLockReadGuard};

use crate::engine::Registration;
use crate::engine::handles::Handles;
use crate::engine::registrations::RegistrationTable;
use crate::message::{Address, Seq, SessionId, UserId};

/// The registered sessions.
///
/// The registration of a session changes only while the shard of its mailbox is locked, except that it gives way to another
/// one of its user. So who holds that lock sees one owner.
#[derive(Debug)]
pub(super) struct Sessions {
    table: RwLock<RegistrationTable>,
    /// Whether anything is known of any session: brokers without users know nothing, and need not look.
    any: AtomicBool,
}

impl Sessions {
    pub(super) fn new(handles: Handles) -> Self {
        Self { table: RwLock::new(RegistrationTable::new(handles)), any: AtomicBool::new(false) }
    }

    /// The table. Only the locks of hubs are taken while it is read.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, RegistrationTable> {
        self.table.read().expect("a part of the store is not used after a panic under its lock")
    }

    /// Changes the table.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut RegistrationTable) -> R) -> R {
        let mut table =
            self.table.write().expect("a part of the store is not used after a panic under its lock");
        let changed = change(&mut table);
        self.any.store(!table.is_empty(), Ordering::Release);
        changed
    }

    fn look<R>(&self, nothing: R, look: impl FnOnce(&RegistrationTable) -> R) -> R {
        if self.any.load(Ordering::Acquire) { look(&self.read()) } else { nothing }
    }

    /// Sets what is known of a session.
    pub(super) fn set(&self, session: &SessionId, to: Option<Registration>) {
        self.change(|table| table.set(session, to));
    }

    /// All that is known of a session, whether it is registered or not.
    pub(super) fn entry(&self, session: &SessionId) -> Option<Registration> {
        self.look(None, |table| table.entry(session).cloned())
    }

    /// Since when a mailbox has its owner. That of a backend has one owner for ever.
    pub(super) fn since(&self, mailbox: &Address) -> Option<Seq> {
        let session = mailbox.session()?;
        self.look(None, |table| table.entry(session).map(|known| known.since))
    }

    /// See [`RegistrationTable::has_expired`].
    pub(super) fn has_expired(&self, session: &SessionId, now: u64) -> bool {
        self.look(false, |table| table.has_expired(session, now))
    }

    /// See [`RegistrationTable::is_revoked`].
    pub(super) fn is_revoked(&self, session: &SessionId, now: u64) -> bool {
        self.look(false, |table| table.is_revoked(session, now))
    }

    /// See [`RegistrationTable::is_for`].
    pub(super) fn is_for(
        &self,
        mailbox: &Address,
        (user, since): (Option<&UserId>, Option<Seq>),
        now: u64,
    ) -> bool {
        if user.is_none() && since.is_none() {
            return true;
        }
        mailbox.session().is_none() || self.read().is_for(mailbox, (user, since), now)
    }

    /// See [`RegistrationTable::raise_former`].
    pub(super) fn raise_former(&self, session: &SessionId, to: Seq) -> Option<Registration> {
        if self.look(true, |table| table.entry(session).is_none()) {
            return None;
        }
        self.change(|table| table.raise_former(session, to).cloned())
    }
}
