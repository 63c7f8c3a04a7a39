//! The writer: commits what is queued, group by group.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::EngineError;
use crate::engine::embedded::disk::{CommitGroup, Disk};
use crate::engine::embedded::files::Files;
use crate::engine::embedded::index::{PlannedChange, Waiter};
use crate::engine::embedded::publish_queue::CommittedGroup;
use crate::engine::embedded::running;
use crate::engine::embedded::shared::Shared;
use crate::engine::embedded::store::{Stop, Store, WriterState};

mod backlog;
mod clock_notes;
mod explain;
mod fill;
mod ids;
mod place;
mod refusing;

use backlog::DeleteBacklog;
use clock_notes::ClockNotes;
use explain::NO_SPACE;
use fill::Fill;
use place::Place;

/// Messages, and bytes of them, that are committed together at most.
const MAX_MESSAGES: usize = 4096;
const MAX_BYTES: usize = 4 << 20;

/// What is said after a panic of the writer, or of the task that publishes for it.
pub(super) const DEFECT: &str = "the writer of the store has failed because of a defect";

/// How long a failed commit without waiters is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// For how long room that was seen is relied on.
const ROOM_EVERY: Duration = Duration::from_millis(20);

/// How often space is given back while commits go on, and how many pages at a time: then, and when nothing else is to
/// be done.
const SHRINK_EVERY: Duration = Duration::from_secs(1);
const SHRINK_BUSY: i64 = 64;
const SHRINK_IDLE: i64 = 1024;

/// Commits what is queued. One for each store.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// `None` only at the end.
    disk: Option<Disk>,
    files: Files,
    place: Place,
    /// How long ids are remembered.
    window: Duration,
    deletes: DeleteBacklog,
    fill: Fill,
    clock: ClockNotes,
    /// Set after a failure.
    retry: Option<Retry>,
    /// When there was room, as last seen; `None` if there was none.
    room_seen: Option<Instant>,
    shrunk: Instant,
    may_shrink: bool,
}

/// When a failed commit is tried again.
#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    /// How much was queued: if more is queued, the commit is tried at once.
    queued: usize,
}

/// What the writer does next.
enum Step {
    Commit(Box<CommitGroup>),
    Idle,
    Stop(Stop),
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, disk: Disk, files: Files, window: Duration) -> Self {
        Self {
            disk: Some(disk),
            place: Place::of(&files),
            files,
            window,
            deletes: DeleteBacklog::default(),
            fill: Fill::default(),
            clock: ClockNotes::new(shared.clock.reading()),
            retry: None,
            room_seen: None,
            shrunk: Instant::now(),
            may_shrink: true,
            shared,
        }
    }

    /// Works until the store is closed.
    pub(super) fn run(self) {
        let shared = Arc::clone(&self.shared);
        if catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            stop_for_good(&shared, DEFECT);
        }
    }

    fn work(mut self) {
        loop {
            match self.wait() {
                Step::Commit(group) => self.commit(*group),
                Step::Stop(how) => return self.end(how),
                Step::Idle => {
                    self.check_place();
                    self.shrink(SHRINK_IDLE);
                    // Room may have been made elsewhere. Other failures end only with a successful commit.
                    let failing = self.shared.store.lock().and_then(|store| store.failing.clone());
                    if failing.as_deref() == Some(NO_SPACE) {
                        self.recovered();
                    }
                }
            }
            if self.shrunk.elapsed() > SHRINK_EVERY {
                self.shrink(SHRINK_BUSY);
            }
        }
    }

    /// Commits what is queued now, without waiting for more. Returns whether there was anything.
    pub fn turn(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let Some(mut store) = shared.store.lock() else { return false };
        let nothing = store.index.awaited() == 0
            && !store.index.has_writes()
            && self.deletes.is_empty()
            && !self.clock.has_moved(&self.shared.clock);
        if store.stop == Some(Stop::AtOnce) || nothing {
            return false;
        }
        let group = self.take(&mut store, true);
        drop(store);
        self.commit(group);
        true
    }

    /// Writes what is left and closes the store, or leaves it as it is if it was abandoned.
    pub fn finish(mut self) {
        let how = match self.shared.store.lock() {
            Some(mut store) => *store.stop.get_or_insert(Stop::InOrder),
            None => Stop::AtOnce,
        };
        if how == Stop::InOrder {
            while self.turn() && self.retry.is_none() {}
        }
        self.end(how);
    }

    /// Waits for something to do.
    fn wait(&mut self) -> Step {
        let shared = Arc::clone(&self.shared);
        let Some(mut store) = shared.store.lock() else { return Step::Stop(Stop::AtOnce) };
        loop {
            let (wait, asleep) = match self.next(&mut store) {
                ControlFlow::Break(step) => return step,
                ControlFlow::Continue(sleep) => sleep,
            };
            store.writer = asleep;
            let Some((guard, timed_out)) = shared.store.wait(store, &shared.work, wait) else {
                return Step::Stop(Stop::AtOnce);
            };
            store = guard;
            store.writer = WriterState::Awake;
            self.may_shrink |= timed_out && asleep == WriterState::Idle;
        }
    }

    /// What is to be done now, or how long to sleep, and how.
    fn next(&mut self, store: &mut Store) -> ControlFlow<Step, (Duration, WriterState)> {
        if store.stop == Some(Stop::AtOnce) {
            return ControlFlow::Break(Step::Stop(Stop::AtOnce));
        }
        let writes = store.index.has_writes() || !self.deletes.is_empty();
        let queued = store.index.awaited();
        let stopping = store.stop.is_some();
        let now = Instant::now();
        if let Some(Retry { at, queued: before }) = self.retry {
            if now < at && queued <= before && !stopping {
                return ControlFlow::Continue((at - now, WriterState::Holding));
            }
            if stopping && now < at && (queued > 0 || writes) {
                // It cannot be written, and there is no time to wait.
                return ControlFlow::Break(Step::Stop(Stop::InOrder));
            }
        }
        if self.retry.is_none()
            && !stopping
            && !store.index.queue_is_half_full()
            && let Some((left, full)) = self.fill.wait(store.index.queued(), now)
        {
            return ControlFlow::Continue((left, WriterState::Filling(full)));
        }
        let linger = if writes && self.retry.is_none() && !stopping {
            self.deletes.linger(now, store.index.writes().as_deref())
        } else {
            Duration::ZERO
        };
        if linger > Duration::ZERO && queued == 0 {
            return ControlFlow::Continue((linger, WriterState::Holding));
        }
        if queued > 0 || writes || self.clock.has_moved(&self.shared.clock) {
            let group = self.take(store, linger.is_zero());
            return ControlFlow::Break(Step::Commit(Box::new(group)));
        }
        if stopping {
            return ControlFlow::Break(Step::Stop(Stop::InOrder));
        }
        match self.may_shrink {
            true => ControlFlow::Break(Step::Idle),
            false => ControlFlow::Continue((SHRINK_EVERY, WriterState::Idle)),
        }
    }

    /// Takes what the next commit writes; deletions only if they are due.
    fn take(&mut self, store: &mut Store, deletes_are_due: bool) -> CommitGroup {
        let appends = store.index.take(MAX_MESSAGES, MAX_BYTES);
        self.shared.copy_counters(store);
        let committed = store.index.committed();
        let through = appends.last().map_or(committed, |last| last.seq);
        let writes = store.index.writes().map(|writes| writes.take(deletes_are_due)).unwrap_or_default();
        self.deletes.add(writes.deletes);
        let deletes = if deletes_are_due { self.deletes.next(appends.len(), through) } else { Vec::new() };
        CommitGroup {
            deletes,
            appends,
            floors: writes.floors.into_iter().collect(),
            registrations: writes.registrations.into_iter().collect(),
            waiters: writes.waiters,
            changes: store.index.begin_changes(&self.shared.hubs, through),
            newest: through.max(committed),
            forgotten: store.index.forgotten(),
            now: self.shared.clock.now(),
            until: store.index.expiry(self.window),
            remembered: store.index.remembered_ids(),
            cleaned: Vec::new(),
            clock: self.clock.due(&self.shared.clock),
        }
    }

    /// Whether there is room for appends. Deletions, which make room, go on without it.
    fn has_room(&mut self) -> bool {
        if self.room_seen.is_none_or(|seen| seen.elapsed() > ROOM_EVERY) {
            let has_room = self.disk.as_ref().is_some_and(Disk::has_room);
            self.room_seen = has_room.then(Instant::now);
        }
        self.room_seen.is_some()
    }

    fn commit(&mut self, group: CommitGroup) {
        let (has_changes, messages, begun) = (!group.changes.is_empty(), group.appends.len(), Instant::now());
        self.shared.commits.begin();
        self.try_commit(group);
        self.shared.commits.end();
        let Some(mut store) = self.shared.store.lock() else { return };
        if has_changes {
            store.index.changes_done();
        }
        let queued = store.index.queued().min(MAX_MESSAGES - messages);
        drop(store);
        let now = Instant::now();
        self.fill.committed(messages, queued, now - begun, now);
    }

    fn try_commit(&mut self, mut group: CommitGroup) {
        if group.grows() && !self.has_room() {
            self.keep_what_makes_room(&mut group);
            if group.is_empty() {
                return;
            }
        }
        self.clean_ids(&mut group);
        let Some(disk) = &mut self.disk else { return };
        match disk.write(&group) {
            Ok(()) if self.check_place() => self.committed(group),
            // Its waiters are told when the group is dropped.
            Ok(()) => {}
            Err(error) => self.failed(group, &error),
        }
    }

    /// Whether the files are where they were. If they are not, what is written now would not be there after a restart.
    fn check_place(&mut self) -> bool {
        let Some(missing) = self.place.missing() else { return true };
        let reason = format!("{} was removed or replaced while it was in use", missing.display());
        if let Some(disk) = &self.disk
            && let Err(error) = disk.restart_log()
        {
            tracing::debug!(%error, "the write-ahead log cannot be copied into the database");
        }
        stop_for_good(&self.shared, &reason);
        false
    }

    /// A commit succeeded: its messages are to be published, and its waiters told.
    fn committed(&mut self, group: CommitGroup) {
        self.may_shrink |= !group.deletes.is_empty();
        self.deletes.written(&group.deletes);
        self.clock.written(group.clock);
        let shared = Arc::clone(&self.shared);
        // Without a store there are no waiters: see `StoreLock`.
        let Some(mut store) = shared.store.lock() else { return };
        let (publications, senders) = shared.commit(&mut store, group.appends);
        store.index.apply_changes(&group.changes, &shared.hubs);
        shared.copy_counters(&store);
        drop(store);
        let CommitGroup { changes, waiters: others, newest, .. } = group;
        let committed = CommittedGroup { publications, changes, senders, others, newest };
        if !shared.publisher.queue.add(committed) {
            shared.publisher.publish_committed();
        }
        self.recovered();
    }

    /// A commit succeeded or there may be room again: if there is room, the store works again.
    fn recovered(&mut self) {
        let shared = Arc::clone(&self.shared);
        let was_failing = shared.store.lock().is_some_and(|store| store.failing.is_some());
        if was_failing && self.has_room() {
            self.retry = None;
            if let Some(mut store) = shared.store.lock() {
                store.failing = None;
            }
            tracing::info!("the store takes messages again");
        }
    }

    fn shrink(&mut self, pages: i64) {
        self.shrunk = Instant::now();
        let Some(disk) = &self.disk else { return };
        self.may_shrink = disk.shrink(pages).unwrap_or_else(|error| {
            tracing::debug!(%error, "no space was given back");
            false
        });
    }

    fn end(mut self, how: Stop) {
        if let Some(access) = &self.shared.disk {
            access.readers.close();
        }
        let Some(disk) = self.disk.take() else { return };
        if how == Stop::AtOnce {
            return;
        }
        let waiters = self.shared.store.lock().map(|mut store| store.index.give_up());
        fail(waiters.unwrap_or_default(), &"the server is stopping".into());
        let ended = running::ending(&self.files, disk.durability())
            .and_then(|()| disk.close(self.shared.clock.reading()).map_err(std::io::Error::other))
            .and_then(|()| running::end(&self.files));
        if let Err(error) = ended {
            tracing::warn!(%error, "the store was not closed in order; the next start recovers it");
        }
    }
}

/// Nothing is written any more: refuses what waits, and tells that the store cannot go on.
pub(super) fn stop_for_good(shared: &Shared, reason: &str) {
    let reason: Arc<str> = reason.into();
    if let Some(mut store) = shared.store.lock() {
        store.stop = Some(Stop::AtOnce);
        store.failing = Some(Arc::clone(&reason));
        let waiters = store.index.give_up();
        drop(store);
        fail(waiters, &reason);
    }
    shared.fatal.declare(&reason);
}

fn fail_changes(changes: Vec<PlannedChange>, reason: &Arc<str>) {
    for change in changes {
        change.tell(Err(EngineError::Unavailable { reason: Arc::clone(reason) }));
    }
}

fn fail(waiters: Vec<Waiter>, reason: &Arc<str>) {
    for waiter in waiters {
        _ = waiter.send(Err(EngineError::Unavailable { reason: Arc::clone(reason) }));
    }
}
