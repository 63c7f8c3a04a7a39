//! The writer: commits what is queued, group by group.

use std::fs::File;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use crate::engine::EngineError;
use crate::engine::embedded::disk::{Disk, Group};
use crate::engine::embedded::recovery::{self, Files};
use crate::engine::embedded::{Inner, LINGER, Stop, Store};
use crate::hub::lock;

/// Messages, and bytes of them, that are committed together at most.
const MOST_MESSAGES: usize = 4096;
const MOST_BYTES: usize = 4 << 20;

/// Messages deleted by one commit at most: few while others wait for it.
const MOST_DELETED: usize = 1024;
const MOST_DELETED_IDLE: usize = 16_384;

/// How long a failed commit of what nobody waits for is left alone.
const RETRY: Duration = Duration::from_secs(1);

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
    /// Keeps other processes out until the store is closed.
    _lock: File,
    /// How long ids are remembered, in milliseconds.
    window: u64,
    /// When what is gone was first seen waiting for a commit to ride on.
    gone_since: Option<Instant>,
    /// After a failure: when it is tried again, if nothing new comes, and how much was queued.
    retry: Option<(Instant, usize)>,
    shrunk: Instant,
    may_shrink: bool,
}

/// What the writer does next.
enum Work {
    Commit(Group),
    Idle,
    Stop(Stop),
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>, disk: Disk, files: Files, lock: File, window: u64) -> Self {
        Self {
            inner,
            disk: Some(disk),
            files,
            _lock: lock,
            window,
            gone_since: None,
            retry: None,
            shrunk: Instant::now(),
            may_shrink: true,
        }
    }

    /// Works until the store is closed.
    pub(super) fn run(mut self) {
        loop {
            match self.wait() {
                Work::Commit(group) => self.commit(group),
                Work::Idle => self.shrink(SHRINK_IDLE),
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
        if store.stop == Some(Stop::AtOnce) || store.index.queued() == 0 && store.index.gone().is_empty() {
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
            let (queued, gone) = (store.index.queued(), !store.index.gone().is_empty());
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

    fn take(&mut self, store: &mut Store) -> Group {
        let now = self.inner.clock.now();
        let appends = store.index.take(MOST_MESSAGES, MOST_BYTES);
        let through = appends.last().map_or_else(|| store.index.committed(), |last| last.seq);
        let most = if appends.is_empty() { MOST_DELETED_IDLE } else { MOST_DELETED };
        let (gone, floors) = store.index.take_gone(through, most);
        let (newest, forgotten) = (through.max(store.index.committed()), store.index.forgotten());
        Group { appends, gone, floors, newest, forgotten, now, until: now + self.window }
    }

    fn commit(&mut self, group: Group) {
        let Some(disk) = &mut self.disk else { return };
        let written = disk.write(&group);
        self.gone_since = None;
        let inner = Arc::clone(&self.inner);
        let mut store = lock(&inner.store);
        match written {
            Ok(()) => {
                self.retry = None;
                self.may_shrink |= !group.gone.is_empty();
                if store.failing.take().is_some() {
                    tracing::info!("the store takes messages again");
                }
                let repeats = inner.committed(&mut store, &group.appends);
                drop(store);
                for pending in &group.appends {
                    inner.hubs.publish(&pending.address, &pending.publication);
                }
                for pending in group.appends {
                    if let Some(waiter) = pending.waiter {
                        _ = waiter.send(Ok(pending.seq));
                    }
                }
                for (seq, waiter) in repeats {
                    _ = waiter.send(Ok(seq));
                }
            }
            Err(error) => {
                let reason: Arc<str> = explain(&error).into();
                if store.failing.as_ref() != Some(&reason) {
                    tracing::error!(%reason, %error, "the store cannot take messages now");
                }
                store.failing = Some(Arc::clone(&reason));
                let gone = store.index.gone();
                for entry in group.gone.into_iter().rev() {
                    gone.messages.push_front(entry);
                }
                for (address, floor) in group.floors {
                    gone.floors.entry(address).or_insert(floor);
                }
                let told = store.index.refuse(group.appends);
                self.retry = Some((Instant::now() + RETRY, store.index.queued()));
                drop(store);
                for waiter in told {
                    _ = waiter.send(Err(EngineError::Unavailable { reason: Arc::clone(&reason) }));
                }
            }
        }
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
            if let Err(error) = disk.abandon() {
                tracing::debug!(%error, "abandoned");
            }
            return;
        }
        let refused = {
            let mut store = lock(&self.inner.store);
            store.index.refuse(Vec::new())
        };
        for waiter in refused {
            _ = waiter.send(Err(EngineError::Unavailable { reason: "the server is stopping".into() }));
        }
        if let Err(error) = disk.close() {
            tracing::error!(%error, "the store was not closed in order; the next start recovers it");
        } else if let Err(error) = recovery::end(&self.files) {
            tracing::warn!(%error, "the end of this run cannot be noted");
        }
    }
}

/// An error of SQLite in an operator's words.
fn explain(error: &rusqlite::Error) -> String {
    let rusqlite::Error::SqliteFailure(failure, _) = error else { return error.to_string() };
    match failure.code {
        ErrorCode::DiskFull => "no space is left on the disk of --data-dir".to_owned(),
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
