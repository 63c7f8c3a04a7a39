//! The writer: commits what is queued, group by group.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::EngineError;
use crate::engine::embedded::disk::{CommitGroup, Disk};
use crate::engine::embedded::files::Files;
use crate::engine::embedded::index::{Intake, Pending, PlannedChange, Stop, Waiter, WriterState};
use crate::engine::embedded::publish_queue::CommittedGroup;
use crate::engine::embedded::running;
use crate::engine::embedded::shared::Shared;
use crate::metrics;

mod backlog;
mod clock_notes;
mod explain;
mod fill;
mod group;
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
const GROUP: (usize, usize) = (MAX_MESSAGES, MAX_BYTES);

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

/// What is to be done, as what waits shows it.
enum Next {
    Take {
        /// Whether what has left is deleted, too.
        deletes_are_due: bool,
    },
    Idle,
    Stop(Stop),
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
                    let failing = self.shared.intake().and_then(|intake| intake.failing.clone());
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
        let Some(mut intake) = shared.intake() else { return false };
        let nothing = intake.awaited() == 0
            && !intake.has_writes()
            && self.deletes.is_empty()
            && !self.clock.has_moved(&self.shared.clock);
        if intake.stop == Some(Stop::AtOnce) || nothing {
            return false;
        }
        let taken = shared.index.take(&mut intake, GROUP, true);
        drop(intake);
        let group = self.group(taken, true);
        self.commit(group);
        true
    }

    /// Writes what is left and closes the store, or leaves it as it is if it was abandoned.
    pub fn finish(mut self) {
        let how = match self.shared.intake() {
            Some(mut intake) => *intake.stop.get_or_insert(Stop::InOrder),
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
        let Some(mut intake) = shared.intake() else { return Step::Stop(Stop::AtOnce) };
        loop {
            let (wait, asleep) = match self.next(&mut intake) {
                ControlFlow::Break(Next::Take { deletes_are_due }) => {
                    let taken = shared.index.take(&mut intake, GROUP, deletes_are_due);
                    drop(intake);
                    return Step::Commit(Box::new(self.group(taken, deletes_are_due)));
                }
                ControlFlow::Break(Next::Idle) => return Step::Idle,
                ControlFlow::Break(Next::Stop(how)) => return Step::Stop(how),
                ControlFlow::Continue(sleep) => sleep,
            };
            intake.writer = asleep;
            let Some((guard, timed_out)) = shared.index.intake.wait(intake, wait) else {
                return Step::Stop(Stop::AtOnce);
            };
            intake = guard;
            intake.writer = WriterState::Awake;
            self.may_shrink |= timed_out && asleep == WriterState::Idle;
        }
    }

    /// What is to be done now, or how long to sleep, and how.
    fn next(&mut self, intake: &mut Intake) -> ControlFlow<Next, (Duration, WriterState)> {
        if intake.stop == Some(Stop::AtOnce) {
            return ControlFlow::Break(Next::Stop(Stop::AtOnce));
        }
        let writes = intake.has_writes() || !self.deletes.is_empty();
        let queued = intake.awaited();
        let stopping = intake.stop.is_some();
        let now = Instant::now();
        if let Some(Retry { at, queued: before }) = self.retry {
            if now < at && queued <= before && !stopping {
                return ControlFlow::Continue((at - now, WriterState::Holding));
            }
            if stopping && now < at && (queued > 0 || writes) {
                // It cannot be written, and there is no time to wait.
                return ControlFlow::Break(Next::Stop(Stop::InOrder));
            }
        }
        if self.retry.is_none()
            && !stopping
            && !intake.queue_is_half_full()
            && let Some((left, full)) = self.fill.wait(intake.queued(), now)
        {
            return ControlFlow::Continue((left, WriterState::Filling(full)));
        }
        let linger = if writes && self.retry.is_none() && !stopping {
            self.deletes.linger(now, intake.noted_deletes())
        } else {
            Duration::ZERO
        };
        if linger > Duration::ZERO && queued == 0 {
            return ControlFlow::Continue((linger, WriterState::Holding));
        }
        if queued > 0 || writes || self.clock.has_moved(&self.shared.clock) {
            return ControlFlow::Break(Next::Take { deletes_are_due: linger.is_zero() });
        }
        if stopping {
            return ControlFlow::Break(Next::Stop(Stop::InOrder));
        }
        match self.may_shrink {
            true => ControlFlow::Break(Next::Idle),
            false => ControlFlow::Continue((SHRINK_EVERY, WriterState::Idle)),
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
        let Some(mut intake) = self.shared.intake() else { return };
        if has_changes {
            intake.changes_done();
        }
        let queued = intake.queued().min(MAX_MESSAGES - messages);
        drop(intake);
        let now = Instant::now();
        metrics::COMMIT.observe(now - begun);
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
        count_committed(&group.appends);
        let mut publications = Vec::with_capacity(group.appends.len());
        let senders = shared.index.commit(group.appends, &mut publications);
        shared.index.apply_changes(&group.changes, &shared.hubs);
        // In a store that is broken, all that is certain is what the disk has: its waiters are told by their absence.
        if shared.intake().is_none() {
            return;
        }
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
        let was_failing = shared.intake().is_some_and(|intake| intake.failing.is_some());
        if was_failing && self.has_room() {
            self.retry = None;
            if let Some(mut intake) = shared.intake() {
                intake.failing = None;
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
        let waiters = self.shared.intake().map(|mut intake| intake.give_up());
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
    if let Some(mut intake) = shared.intake() {
        intake.stop = Some(Stop::AtOnce);
        intake.failing = Some(Arc::clone(&reason));
        let waiters = intake.give_up();
        drop(intake);
        fail(waiters, &reason);
    }
    shared.fatal.declare(&reason);
}

/// Counts messages that are stored now, and how long they have waited for it.
fn count_committed(appends: &[Pending]) {
    let now = Instant::now();
    metrics::COMMITTED.add(appends.len() as u64);
    appends
        .iter()
        .for_each(|append| metrics::observe_commit_wait(now.saturating_duration_since(append.since)));
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
