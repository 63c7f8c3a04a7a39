//! The writer: commits what is queued, group by group.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use crate::engine::embedded::disk::{CommitGroup, Disk};
use crate::engine::embedded::files::Files;
use crate::engine::embedded::index::{Pending, Waiter};
use crate::engine::embedded::running;
use crate::engine::embedded::{Inner, LINGER, Stop, Store};
use crate::engine::{EngineError, Registration, RegistrationSource};
use crate::message::{Seq, SessionId};
use crate::sync::lock;

/// Messages, and bytes of them, that are committed together at most.
const MOST_MESSAGES: usize = 4096;
const MOST_BYTES: usize = 4 << 20;

/// Messages deleted by one commit at most, each of which may be on a page of its own: few while others wait.
const MOST_DELETED: usize = 1024;
const MOST_DELETED_IDLE: usize = 2048;

/// How long a failed commit of what nobody waits for is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// For how long room that was seen is counted on.
const ROOM_EVERY: Duration = Duration::from_millis(20);

/// How often space is given back while there is no rest, and how much at a time, in pages.
const SHRINK_EVERY: Duration = Duration::from_secs(1);
const SHRINK_BUSY: i64 = 64;
const SHRINK_IDLE: i64 = 1024;

/// Commits what is queued. One for each store.
#[derive(Debug)]
pub struct Writer {
    inner: Arc<Inner>,
    /// Empty only at the end.
    disk: Option<Disk>,
    files: Files,
    /// How long ids are remembered.
    window: Duration,
    /// What is to be deleted, oldest first, so that it is likely to be on pages together; each with the seq of the
    /// receipt that must be stored no later.
    gone: BTreeMap<Seq, Seq>,
    /// When something gone was first seen waiting for a commit to ride on.
    gone_since: Option<Instant>,
    /// After a failure: when it is tried again, if nothing new comes, and how much was queued.
    retry: Option<(Instant, usize)>,
    /// When there was room, as last seen; `None` if there was none.
    room_seen: Option<Instant>,
    shrunk: Instant,
    may_shrink: bool,
}

/// What the writer does next.
enum Work {
    Commit(CommitGroup),
    Idle,
    Stop(Stop),
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>, disk: Disk, files: Files, window: Duration) -> Self {
        Self {
            inner,
            disk: Some(disk),
            files,
            window,
            gone: BTreeMap::new(),
            gone_since: None,
            retry: None,
            room_seen: None,
            shrunk: Instant::now(),
            may_shrink: true,
        }
    }

    /// Works until the store is closed.
    pub(super) fn run(self) {
        let inner = Arc::clone(&self.inner);
        // A defect here must not look like a broker that is well.
        if catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            let reason: Arc<str> = "the writer of the store has failed; restart the server".into();
            tracing::error!(%reason, "messages cannot be stored any more");
            let mut store = lock(&inner.store);
            store.stop = Some(Stop::AtOnce);
            store.failing = Some(Arc::clone(&reason));
            for waiter in store.index.give_up() {
                _ = waiter.send(Err(EngineError::Unavailable { reason: Arc::clone(&reason) }));
            }
        }
    }

    fn work(mut self) {
        loop {
            match self.wait() {
                Work::Commit(group) => self.commit(group),
                Work::Idle => {
                    self.shrink(SHRINK_IDLE);
                    // Somebody else made room. What else was wrong, only a commit shows to be over.
                    if lock(&self.inner.store).failing.as_deref() == Some(NO_SPACE) {
                        self.recovered();
                    }
                }
                Work::Stop(how) => return self.end(how),
            }
            if self.shrunk.elapsed() > SHRINK_EVERY {
                self.shrink(SHRINK_BUSY);
            }
        }
    }

    /// Commits what is queued now, without waiting for more. Answers whether there was anything.
    pub fn turn(&mut self) -> bool {
        let inner = Arc::clone(&self.inner);
        let mut store = lock(&inner.store);
        let nothing = store.index.queued() == 0 && !store.index.has_writes() && self.gone.is_empty();
        if store.stop == Some(Stop::AtOnce) || nothing {
            return false;
        }
        let group = self.take(&mut store);
        drop(store);
        self.commit(group);
        true
    }

    /// Writes what is left and closes the store, or leaves it as it is if it was abandoned.
    pub fn finish(mut self) {
        let how = *lock(&self.inner.store).stop.get_or_insert(Stop::InOrder);
        if how == Stop::InOrder {
            while self.turn() && self.retry.is_none() {}
        }
        self.end(how);
    }

    /// Waits for something to do.
    fn wait(&mut self) -> Work {
        let inner = Arc::clone(&self.inner);
        let mut store = lock(&inner.store);
        loop {
            if store.stop == Some(Stop::AtOnce) {
                return Work::Stop(Stop::AtOnce);
            }
            let gone = store.index.has_writes() || !self.gone.is_empty();
            let queued = store.index.queued() + store.index.writes().map_or(0, |writes| writes.waiters.len());
            let stopping = store.stop.is_some();
            let now = Instant::now();
            let wait = match self.retry {
                Some((at, failed)) if now < at && queued <= failed && !stopping => at - now,
                Some(_) if queued > 0 || gone => {
                    // When it stops, what could not be written is left.
                    if stopping && self.retry.is_some_and(|(at, _)| now < at) {
                        return Work::Stop(Stop::InOrder);
                    }
                    return Work::Commit(self.take(&mut store));
                }
                _ if queued > 0 => return Work::Commit(self.take(&mut store)),
                _ if gone => {
                    let since = *self.gone_since.get_or_insert(now);
                    if stopping || now >= since + LINGER {
                        return Work::Commit(self.take(&mut store));
                    }
                    since + LINGER - now
                }
                _ if stopping => return Work::Stop(Stop::InOrder),
                _ if self.may_shrink => return Work::Idle,
                _ => SHRINK_EVERY,
            };
            let (guard, timeout) =
                inner.work.wait_timeout(store, wait).unwrap_or_else(PoisonError::into_inner);
            store = guard;
            if timeout.timed_out() && wait == SHRINK_EVERY {
                self.may_shrink = true;
            }
        }
    }

    fn take(&mut self, store: &mut Store) -> CommitGroup {
        let now = self.inner.clock.now();
        let appends = store.index.take(MOST_MESSAGES, MOST_BYTES);
        let through = appends.last().map_or_else(|| store.index.committed(), |last| last.seq);
        // More than what comes, or they would fall behind.
        let busy = MOST_DELETED.max(2 * appends.len());
        let most = if appends.is_empty() { MOST_DELETED_IDLE } else { busy };
        let taken = store.index.writes().map(std::mem::take).unwrap_or_default();
        self.gone.extend(taken.deletes.into_iter().map(|delete| (delete.seq, delete.receipt)));
        let ready = self.gone.iter().filter(|(_, after)| **after <= through);
        let deletes = ready.map(|(seq, _)| *seq).take(most).collect();
        let floors = taken.floors.into_iter().collect();
        let (registrations, waiters) = (taken.registrations.into_iter().collect(), taken.waiters);
        let (newest, forgotten) = (through.max(store.index.committed()), store.index.forgotten());
        CommitGroup {
            appends,
            deletes,
            floors,
            registrations,
            waiters,
            newest,
            forgotten,
            now,
            until: store.index.expiry(self.window),
        }
    }

    /// Without room nothing is appended; deletions, which make room, go on.
    fn has_room(&mut self) -> bool {
        if self.room_seen.is_none_or(|seen| seen.elapsed() > ROOM_EVERY) {
            let has_room = self.disk.as_ref().is_some_and(Disk::has_room);
            self.room_seen = has_room.then(Instant::now);
        }
        self.room_seen.is_some()
    }

    fn commit(&mut self, mut group: CommitGroup) {
        let is_new = |to: &Option<Registration>| {
            to.as_ref().is_some_and(|to| to.source != RegistrationSource::Revoked)
        };
        let grows = group.appends.iter().any(|pending| pending.waiter.is_some())
            || group.registrations.iter().any(|(_, to)| is_new(to));
        if grows && !self.has_room() {
            let appends = std::mem::take(&mut group.appends);
            // Receipts are small, and what they are about makes room: there is headroom for both.
            group.appends = self.refuse(appends, NO_SPACE, true);
            group.newest = group.appends.last().map_or(group.newest, |last| last.seq.max(group.newest));
            let registrations = std::mem::take(&mut group.registrations);
            let (held, ended) = registrations.into_iter().partition(|(_, to)| is_new(to));
            group.registrations = ended;
            self.hold_back(held, &mut group.waiters);
            let nothing = group.appends.is_empty() && group.deletes.is_empty();
            if nothing && group.floors.is_empty() && group.registrations.is_empty() {
                return;
            }
        }
        let Some(disk) = &mut self.disk else { return };
        let written = disk.write(&group);
        let inner = Arc::clone(&self.inner);
        let mut store = lock(&inner.store);
        match written {
            Ok(()) => {
                self.may_shrink |= !group.deletes.is_empty();
                for seq in &group.deletes {
                    self.gone.remove(seq);
                }
                if self.gone.is_empty() {
                    self.gone_since = None;
                }
                let committed = inner.committed(&mut store, group.appends);
                drop(store);
                inner.publish(&committed.publications);
                for (seq, waiter) in committed.waiters {
                    _ = waiter.send(Ok(seq));
                }
                for waiter in group.waiters {
                    _ = waiter.send(Ok(group.newest));
                }
                self.recovered();
            }
            Err(error) => {
                if let Some(writes) = store.index.writes() {
                    writes.requeue(group.floors, group.registrations);
                }
                drop(store);
                tracing::debug!(%error, "a commit failed");
                let reason = explain(&error);
                _ = self.refuse(group.appends, &reason, false);
                for waiter in group.waiters {
                    _ = waiter.send(Err(EngineError::Unavailable { reason: reason.as_str().into() }));
                }
            }
        }
    }

    /// Keeps registrations for better times, and tells who waits for them.
    fn hold_back(&self, held: Vec<(SessionId, Option<Registration>)>, waiters: &mut Vec<Waiter>) {
        if held.is_empty() {
            return;
        }
        let mut store = lock(&self.inner.store);
        if let Some(writes) = store.index.writes() {
            writes.requeue([], held);
        }
        drop(store);
        for waiter in waiters.drain(..) {
            _ = waiter.send(Err(EngineError::Unavailable { reason: NO_SPACE.into() }));
        }
    }

    /// A commit succeeded; if there is room too, the store is well again.
    fn recovered(&mut self) {
        let inner = Arc::clone(&self.inner);
        let was_failing = lock(&inner.store).failing.is_some();
        if was_failing && self.has_room() {
            self.retry = None;
            lock(&inner.store).failing = None;
            tracing::info!("the store takes messages again");
        }
    }

    /// Takes back what cannot be stored now, and tells its senders why. Receipts, which nobody waits for, stay in the
    /// queue, or are handed back to be stored all the same.
    fn refuse(&mut self, appends: Vec<Pending>, reason: &str, take_receipts: bool) -> Vec<Pending> {
        let reason: Arc<str> = reason.into();
        let inner = Arc::clone(&self.inner);
        let mut store = lock(&inner.store);
        if store.failing.as_ref() != Some(&reason) {
            tracing::error!(%reason, "the store cannot take messages now");
        }
        store.failing = Some(Arc::clone(&reason));
        let told = store.index.refuse(appends);
        inner.newest.store(store.index.committed().0, Ordering::Release);
        let receipts = if take_receipts { store.index.take(MOST_MESSAGES, MOST_BYTES) } else { Vec::new() };
        self.retry = Some((Instant::now() + RETRY, store.index.queued()));
        drop(store);
        for waiter in told {
            _ = waiter.send(Err(EngineError::Unavailable { reason: Arc::clone(&reason) }));
        }
        receipts
    }

    fn shrink(&mut self, pages: i64) {
        self.shrunk = Instant::now();
        let Some(disk) = &self.disk else { return };
        self.may_shrink = disk.shrink(pages).unwrap_or_else(|error| {
            tracing::debug!(%error, "no space given back");
            false
        });
    }

    fn end(mut self, how: Stop) {
        if let Some(readers) = &self.inner.readers {
            readers.close();
        }
        let Some(disk) = self.disk.take() else { return };
        if how == Stop::AtOnce {
            return;
        }
        let refused = {
            let mut store = lock(&self.inner.store);
            store.index.give_up()
        };
        for waiter in refused {
            _ = waiter.send(Err(EngineError::Unavailable { reason: "the server is stopping".into() }));
        }
        let ended = running::ending(&self.files, disk.durability())
            .and_then(|()| disk.close().map_err(std::io::Error::other))
            .and_then(|()| running::end(&self.files));
        if let Err(error) = ended {
            tracing::warn!(%error, "the store was not closed in order; the next start recovers it");
        }
    }
}

const NO_SPACE: &str = "no space is left on the disk of --data-dir";

/// An error of SQLite in an operator's words.
fn explain(error: &rusqlite::Error) -> String {
    let rusqlite::Error::SqliteFailure(failure, _) = error else { return error.to_string() };
    match failure.code {
        // What SQLite says when its shared memory, a file beside the log, finds no room.
        _ if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => NO_SPACE.to_owned(),
        ErrorCode::DiskFull => NO_SPACE.to_owned(),
        ErrorCode::ReadOnly => "the disk of --data-dir is read-only".to_owned(),
        ErrorCode::SystemIoFailure => {
            format!("the disk of --data-dir does not take or give data ({})", failure.extended_code)
        }
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            "the store in --data-dir is damaged; restart the server to recover what is intact".to_owned()
        }
        _ => error.to_string(),
    }
}
