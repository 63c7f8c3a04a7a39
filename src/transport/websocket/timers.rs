//! The deadlines of one connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::link::{Link, WRITE_TIMEOUT, time_for};
use crate::transport::websocket::signs::Signs;

/// The deadlines of one connection. Only one of them, the earliest, is a timer: the tick.
#[derive(Debug)]
pub(super) struct Timers {
    heartbeat: Duration,
    /// When a client must have said `hello`.
    hello_deadline: Instant,
    /// When the peer sent its last frame.
    last_frame: Instant,
    next_ping: Instant,
    /// Since when a write is in progress, and how many bytes it has.
    writing: Option<(Instant, usize)>,
    /// When the next tick is due.
    tick: Instant,
    /// Signs of life between frames, if the socket has the connection for itself. [`crate::link::MonitoredStream`] judges
    /// the writes then.
    signs: Option<Signs>,
}

impl Timers {
    pub(super) fn new(heartbeat: Duration, hello_timeout: Duration) -> Self {
        let now = Instant::now();
        let (next_ping, hello_deadline) = (now + heartbeat, now + hello_timeout);
        let tick = next_ping.min(hello_deadline);
        let (writing, signs) = (None, None);
        Self { heartbeat, hello_deadline, last_frame: now, next_ping, writing, tick, signs }
    }

    /// Looks for signs of life on this connection too, which carries nothing else.
    pub(super) fn watch(&mut self, link: Arc<Link>) {
        self.signs = Some(Signs::new(link));
    }

    /// Looks for signs of life, if no frame has come for a heartbeat.
    pub(super) fn look(&mut self, now: Instant) {
        if let Some(signs) = self.signs.as_mut().filter(|_| now >= self.last_frame + self.heartbeat) {
            signs.look(now);
        }
    }

    /// When the next tick is due.
    pub(super) fn tick(&self) -> Instant {
        self.tick
    }

    /// Makes the next tick due now.
    pub(super) fn tick_now(&mut self) {
        self.tick = Instant::now();
    }

    /// Sets the next tick: for the next ping, for `hello` if it is `awaited`, and for a token that expires `expires_in`
    /// from now. The wall clock may be set meanwhile: the expiry is checked at each tick.
    pub(super) fn schedule_tick(&mut self, now: Instant, hello_awaited: bool, expires_in: Option<Duration>) {
        let hello = hello_awaited.then_some(self.hello_deadline);
        let expiry = expires_in.map(|left| now + left);
        self.tick = [hello, expiry].into_iter().flatten().fold(self.next_ping, Instant::min);
    }

    /// Notes a pause of this process: a tick came late. What the peer sent meanwhile is not read yet. It gets a heartbeat to
    /// be read and to answer a ping, which is due now.
    pub(super) fn paused(&mut self, now: Instant) {
        self.last_frame = self.last_frame.max(now.checked_sub(self.heartbeat).unwrap_or(now));
        self.hello_deadline = self.hello_deadline.max(now + self.heartbeat);
        self.writing = self.writing.map(|(_, bytes)| (now, bytes));
        self.next_ping = now;
        if let Some(signs) = &mut self.signs {
            signs.paused(now);
        }
    }

    pub(super) fn frame_received(&mut self) {
        self.last_frame = Instant::now();
        if let Some(signs) = &mut self.signs {
            signs.frame_received();
        }
    }

    pub(super) fn write_started(&mut self, bytes: usize) {
        self.writing = Some((Instant::now(), bytes));
    }

    pub(super) fn write_finished(&mut self) {
        self.writing = None;
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Whether the peer did not take what is written within [`WRITE_TIMEOUT`], and the time for so many bytes.
    pub(super) fn write_timed_out(&self, now: Instant) -> bool {
        let limit = |bytes| WRITE_TIMEOUT + time_for(bytes as u64);
        self.signs.is_none() && self.writing.is_some_and(|(since, bytes)| now >= since + limit(bytes))
    }

    pub(super) fn hello_timed_out(&self, now: Instant) -> bool {
        now >= self.hello_deadline
    }

    /// How long a peer may be silent: two heartbeats.
    pub(super) fn silence_limit(&self) -> Duration {
        self.heartbeat * 2
    }

    pub(super) fn is_silent(&self, now: Instant) -> bool {
        let limit = self.silence_limit();
        let lives = self.signs.as_ref().is_some_and(|signs| self.is_writing() || signs.show_life(now, limit));
        now >= self.last_frame + limit && !lives
    }

    /// Whether a ping is due. If so, the next one is due a heartbeat later.
    pub(super) fn take_ping(&mut self, now: Instant) -> bool {
        let due = now >= self.next_ping;
        if due {
            self.next_ping = now + self.heartbeat;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(25);
    const HELLO: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn the_tick_is_the_earliest_deadline() {
        let now = Instant::now();
        let mut timers = Timers::new(HEARTBEAT, HELLO);
        assert_eq!(timers.tick(), now + HELLO);
        timers.schedule_tick(now, false, None);
        assert_eq!(timers.tick(), now + HEARTBEAT);
        timers.schedule_tick(now, false, Some(Duration::from_secs(3)));
        assert_eq!(timers.tick(), now + Duration::from_secs(3));
        timers.schedule_tick(now, true, Some(Duration::from_secs(60)));
        assert_eq!(timers.tick(), now + HELLO);
        timers.tick_now();
        assert_eq!(timers.tick(), now);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ping_is_due_once_a_heartbeat() {
        let start = Instant::now();
        let mut timers = Timers::new(HEARTBEAT, HELLO);
        assert!(!timers.take_ping(start + HEARTBEAT - Duration::from_millis(1)));
        assert!(timers.take_ping(start + HEARTBEAT));
        assert!(!timers.take_ping(start + HEARTBEAT));
        assert!(timers.take_ping(start + HEARTBEAT * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_ends_the_silence() {
        let mut timers = Timers::new(HEARTBEAT, HELLO);
        tokio::time::advance(HEARTBEAT * 2).await;
        assert!(timers.is_silent(Instant::now()));
        timers.frame_received();
        assert!(!timers.is_silent(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_this_process_is_not_the_peers_silence() {
        let mut timers = Timers::new(HEARTBEAT, HELLO);
        timers.write_started(0);
        tokio::time::advance(HEARTBEAT * 3).await;
        let now = Instant::now();
        assert!(timers.is_silent(now) && timers.hello_timed_out(now) && timers.write_timed_out(now));
        timers.paused(now);
        assert!(!timers.is_silent(now) && !timers.hello_timed_out(now) && !timers.write_timed_out(now));
        assert!(timers.take_ping(now));
        // A peer that is gone is found out a heartbeat later.
        assert!(timers.is_silent(now + HEARTBEAT) && timers.hello_timed_out(now + HEARTBEAT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_times_out_unless_it_finishes() {
        let start = Instant::now();
        let mut timers = Timers::new(HEARTBEAT, HELLO);
        assert!(!timers.is_writing() && !timers.write_timed_out(start + WRITE_TIMEOUT));
        timers.write_started(0);
        assert!(timers.is_writing() && timers.write_timed_out(start + WRITE_TIMEOUT));
        timers.write_finished();
        assert!(!timers.is_writing() && !timers.write_timed_out(start + WRITE_TIMEOUT));
    }
}
