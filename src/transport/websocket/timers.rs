//! The deadlines of one connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::link::{Link, WRITE_TIMEOUT};
use crate::transport::websocket::signs::Signs;

/// The deadlines of one connection. Only one of them, the earliest, is a timer: the tick.
#[derive(Debug)]
pub(super) struct Timers {
    heartbeat: Duration,
    /// When a client must have said `hello`.
    hello_deadline: Instant,
    /// When the peer completed its last message.
    last_message: Instant,
    next_ping: Instant,
    /// When the next tick is due.
    tick: Instant,
    /// When the last pause of this process ended.
    resumed: Instant,
    signs: Signs,
}

impl Timers {
    pub(super) fn new(heartbeat: Duration, hello_timeout: Duration) -> Self {
        let now = Instant::now();
        let (next_ping, hello_deadline) = (now + heartbeat, now + hello_timeout);
        let tick = next_ping.min(hello_deadline);
        let signs = Signs::default();
        Self { heartbeat, hello_deadline, last_message: now, next_ping, tick, resumed: now, signs }
    }

    /// Looks for signs of life on this connection too, which carries nothing else.
    pub(super) fn watch(&mut self, link: Arc<Link>) {
        self.signs.watch(link);
    }

    /// The connection, if it carries nothing else.
    pub(super) fn link(&self) -> Option<&Arc<Link>> {
        self.signs.link()
    }

    /// Looks for signs of life, if no message was complete for a heartbeat. So many bytes were received.
    pub(super) fn look(&mut self, now: Instant, received: u64) {
        if now >= self.last_message + self.heartbeat {
            self.signs.look(now, received);
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

    /// Makes a tick due when [`Self::write_timed_out`] may be true.
    pub(super) fn watch_write(&mut self, blocked: Option<Instant>) {
        if let Some(since) = blocked.filter(|_| !self.signs.has_link()) {
            self.tick = self.tick.min(since.max(self.resumed) + WRITE_TIMEOUT);
        }
    }

    /// Notes a pause of this process: a tick came late. What the peer sent meanwhile is not read yet. It gets a heartbeat to
    /// be read and to answer a ping, which is due now.
    pub(super) fn paused(&mut self, now: Instant) {
        self.last_message = self.last_message.max(now.checked_sub(self.heartbeat).unwrap_or(now));
        self.hello_deadline = self.hello_deadline.max(now + self.heartbeat);
        (self.next_ping, self.resumed) = (now, now);
        self.signs.paused(now);
    }

    /// A message is complete. So many bytes were received.
    pub(super) fn message_received(&mut self, received: u64) {
        self.last_message = Instant::now();
        self.signs.message_received(received);
    }

    /// Whether the peer has taken nothing for [`WRITE_TIMEOUT`]; the output is `blocked` since then. Where the socket has the
    /// connection for itself, [`crate::link::MonitoredStream`] judges that: it asks the system.
    pub(super) fn write_timed_out(&self, now: Instant, blocked: Option<Instant>) -> bool {
        !self.signs.has_link() && blocked.is_some_and(|since| now >= since.max(self.resumed) + WRITE_TIMEOUT)
    }

    pub(super) fn hello_timed_out(&self, now: Instant) -> bool {
        now >= self.hello_deadline
    }

    /// How long a peer may be silent: two heartbeats.
    pub(super) fn silence_limit(&self) -> Duration {
        self.heartbeat * 2
    }

    /// Whether nothing shows that the peer lives. While the output is `blocked`, its timeout tells.
    pub(super) fn is_silent(&self, now: Instant, blocked: Option<Instant>) -> bool {
        let limit = self.silence_limit();
        now >= self.last_message + limit && blocked.is_none() && !self.signs.show_life(now, limit)
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
    async fn a_message_ends_the_silence() {
        let mut timers = Timers::new(HEARTBEAT, HELLO);
        tokio::time::advance(HEARTBEAT * 2).await;
        let now = Instant::now();
        assert!(timers.is_silent(now, None) && !timers.is_silent(now, Some(now)), "output waits");
        timers.message_received(1);
        assert!(!timers.is_silent(now, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_this_process_is_not_the_peers_silence() {
        let mut timers = Timers::new(HEARTBEAT, HELLO);
        let blocked = Some(Instant::now());
        tokio::time::advance(HEARTBEAT * 3).await;
        let now = Instant::now();
        assert!(timers.is_silent(now, None) && timers.hello_timed_out(now));
        assert!(timers.write_timed_out(now, blocked));
        timers.paused(now);
        assert!(!timers.is_silent(now, None) && !timers.hello_timed_out(now));
        assert!(!timers.write_timed_out(now, blocked));
        assert!(timers.take_ping(now));
        // A peer that is gone is found out a heartbeat later.
        assert!(timers.is_silent(now + HEARTBEAT, None) && timers.hello_timed_out(now + HEARTBEAT));
    }

    #[tokio::test(start_paused = true)]
    async fn output_times_out_after_a_time_without_progress() {
        let start = Instant::now();
        let mut timers = Timers::new(HEARTBEAT * 10, HELLO * 10);
        assert!(!timers.write_timed_out(start + WRITE_TIMEOUT, None));
        timers.watch_write(Some(start));
        assert_eq!(timers.tick(), start + WRITE_TIMEOUT);
        assert!(!timers.write_timed_out(start + WRITE_TIMEOUT, Some(start + Duration::from_millis(1))));
        assert!(timers.write_timed_out(start + WRITE_TIMEOUT, Some(start)));
        // The stream judges its own writes.
        timers.watch(Link::new());
        assert!(!timers.write_timed_out(start + WRITE_TIMEOUT, Some(start)));
    }
}
