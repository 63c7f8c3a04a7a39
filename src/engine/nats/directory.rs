//! This node's copy of the registrations of all sessions.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::engine::handles::Handles;
use crate::engine::registrations::RegistrationTable;
use crate::engine::{Registration, RegistrationSource};
use crate::message::{Seq, SessionId, UserId};
use crate::sync::lock;

/// A registration as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    session: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    expires_at: u64,
    source: Source,
    #[serde(default)]
    tokens_until: u64,
    #[serde(default)]
    since: u64,
    /// When NATS deletes it, in Unix milliseconds.
    gone_at: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    Backend { until: u64, proof: bool },
    Token,
    Revoked,
    Former { through: u64 },
}

impl Entry {
    /// What is stored of a registration until `gone_at`.
    pub(super) fn new(session: &SessionId, registration: &Registration, gone_at: u64) -> Self {
        let source = match registration.source {
            RegistrationSource::Backend { until, proof } => Source::Backend { until, proof },
            RegistrationSource::Token => Source::Token,
            RegistrationSource::Revoked => Source::Revoked,
            RegistrationSource::Former { through } => Source::Former { through: through.0 },
        };
        Self {
            session: session.to_string(),
            user: registration.user.as_ref().map(ToString::to_string),
            expires_at: registration.expires_at,
            source,
            tokens_until: registration.tokens_until,
            since: registration.since.0,
            gone_at,
        }
    }

    fn read(&self) -> Option<(SessionId, Registration)> {
        let source = match self.source {
            Source::Backend { until, proof } => RegistrationSource::Backend { until, proof },
            Source::Token => RegistrationSource::Token,
            Source::Revoked => RegistrationSource::Revoked,
            Source::Former { through } => RegistrationSource::Former { through: Seq(through) },
        };
        let registration = Registration {
            user: self.user.as_deref().map(UserId::new).transpose().ok()?,
            expires_at: self.expires_at,
            source,
            tokens_until: self.tokens_until,
            since: Seq(self.since),
        };
        Some((SessionId::new(&self.session).ok()?, registration))
    }
}

/// This node's copy of the registrations of all sessions.
#[derive(Debug)]
pub(super) struct Directory(Mutex<DirectoryCopy>);

/// The copy: see [`Directory`].
#[derive(Debug)]
pub(super) struct DirectoryCopy {
    pub(super) table: RegistrationTable,
    /// The seq of each session's entry in the stream, and when NATS deletes it.
    revisions: HashMap<SessionId, (u64, u64)>,
    /// Everything up to this seq of the stream is known.
    pub(super) applied: u64,
}

/// What an entry changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) session: SessionId,
    /// Whether what was stored before is not for whoever reads it now. Then its readers end.
    pub(super) ends_readers: bool,
    /// Whether the session was ended.
    pub(super) is_revoked: bool,
}

impl Directory {
    pub(super) fn new(handles: Handles) -> Self {
        let table = RegistrationTable::new(handles);
        Self(Mutex::new(DirectoryCopy { table, revisions: HashMap::new(), applied: 0 }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, DirectoryCopy> {
        lock(&self.0)
    }
}

impl DirectoryCopy {
    /// The seq of a session's entry in the stream; 0 if it has none.
    pub(super) fn revision(&self, session: &SessionId) -> u64 {
        self.revisions.get(session).map_or(0, |(revision, _)| *revision)
    }

    /// Notes an entry with this seq in the stream. `None` if a later one is known, or if it is none.
    pub(super) fn apply(&mut self, revision: u64, body: &[u8]) -> Option<Applied> {
        let entry: Entry = serde_json::from_slice(body).ok()?;
        let (session, registration) = entry.read()?;
        if self.revision(&session) >= revision {
            return None;
        }
        let before = self.table.entry(&session).map_or(Seq::START, |before| before.since);
        let is_revoked = registration.source == RegistrationSource::Revoked;
        let ends_readers = registration.since > before;
        self.revisions.insert(session.clone(), (revision, entry.gone_at));
        self.table.set(&session, Some(registration));
        Some(Applied { session, ends_readers, is_revoked })
    }

    /// Notes that a session has no entry in the stream.
    pub(super) fn remove(&mut self, session: &SessionId) {
        self.revisions.remove(session);
        self.table.set(session, None);
    }

    /// Forgets what NATS has deleted.
    pub(super) fn forget(&mut self, now: u64) {
        let gone = self.revisions.iter().filter(|(_, (_, gone_at))| *gone_at <= now);
        let gone: Vec<SessionId> = gone.map(|(session, _)| session.clone()).collect();
        gone.iter().for_each(|session| self.remove(session));
        self.table.shrink();
        crate::sync::shrink(&mut self.revisions);
    }

    /// What was stored up to here in the mailbox of a session is not for who reads it now.
    pub(super) fn since(&self, session: &SessionId) -> Seq {
        self.table.entry(session).map_or(Seq::START, |known| known.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(since: u64, source: RegistrationSource) -> Vec<u8> {
        let session = SessionId::new("A").unwrap();
        let user = UserId::new("ann").ok();
        let registration = Registration { user, expires_at: 50, source, tokens_until: 3, since: Seq(since) };
        let entry = Entry::new(&session, &registration, 90);
        assert_eq!(entry.read(), Some((session, registration)));
        serde_json::to_vec(&entry).unwrap()
    }

    #[test]
    fn the_latest_entry_counts_whatever_comes_first() {
        let directory = Directory::new(Handles::new(&[1; 16]));
        let (mut copy, session) = (directory.lock(), SessionId::new("A").unwrap());
        assert!(!copy.apply(4, &entry(0, RegistrationSource::Token)).unwrap().ends_readers);
        let revoked = copy.apply(7, &entry(9, RegistrationSource::Revoked)).unwrap();
        assert!(revoked.ends_readers && revoked.is_revoked);
        assert_eq!(copy.apply(5, &entry(0, RegistrationSource::Token)), None);
        assert_eq!(copy.apply(8, b"{}"), None);
        assert_eq!((copy.revision(&session), copy.since(&session)), (7, Seq(9)));
        copy.forget(89);
        assert!(copy.table.entry(&session).is_some());
        copy.forget(90);
        assert!(copy.table.entry(&session).is_none() && copy.revision(&session) == 0);
    }

    #[test]
    fn every_source_is_read_back() {
        let backend = RegistrationSource::Backend { until: 5, proof: true };
        let former = RegistrationSource::Former { through: Seq(8) };
        for source in [backend, former, RegistrationSource::Token, RegistrationSource::Revoked] {
            entry(1, source);
        }
    }
}
