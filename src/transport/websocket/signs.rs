//! Signs of life of a peer that completes no message: bytes of one that is on its way, and output that its TCP takes.
//!
//! What its TCP takes is known only of the whole connection: for a socket that has the connection for itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::link::{Link, WRITE_TIMEOUT, time_for};

/// How long a peer may send nothing in the middle of a message.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(30);

/// What is known about a peer below its messages. Looked at with each tick.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// The connection, if it carries this socket alone.
    link: Option<Arc<Link>>,
    /// Bytes received when the last message was complete.
    at_last_message: u64,
    unfinished: Option<UnfinishedMessage>,
    output: Option<PendingOutput>,
}

/// A message that is not complete.
#[derive(Debug)]
struct UnfinishedMessage {
    begun: Instant,
    /// When more of it was found.
    grown: Instant,
    bytes: u64,
}

/// Output that the peer's TCP has not acknowledged.
#[derive(Debug)]
struct PendingOutput {
    /// What was acknowledged when the peer had taken something last.
    acked: u64,
    taken: Instant,
}

impl Signs {
    /// Looks at this connection too, which carries nothing else.
    pub(super) fn watch(&mut self, link: Arc<Link>) {
        self.link = Some(link);
    }

    /// The connection that it looks at.
    pub(super) fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    /// Whether it looks at a connection.
    pub(super) fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// A message is complete. So many bytes were received.
    pub(super) fn message_received(&mut self, received: u64) {
        self.at_last_message = received;
        (self.unfinished, self.output) = (None, None);
    }

    /// Looks for signs, when no message was complete for a while. So many bytes were received.
    pub(super) fn look(&mut self, now: Instant, received: u64) {
        let bytes = received.saturating_sub(self.at_last_message);
        match &mut self.unfinished {
            Some(message) if message.bytes == bytes => {}
            Some(message) => (message.grown, message.bytes) = (now, bytes),
            None if bytes > 0 => {
                self.unfinished = Some(UnfinishedMessage { begun: now, grown: now, bytes });
            }
            None => {}
        }
        let Some(link) = &self.link else { return };
        let pending = link.unacknowledged().filter(|pending| pending.bytes > 0);
        self.output = match (pending, self.output.take()) {
            (None, _) => None,
            (Some(pending), Some(output)) if output.acked == pending.acked => Some(output),
            (Some(pending), _) => Some(PendingOutput { acked: pending.acked, taken: now }),
        };
    }

    /// A pause of this process does not count.
    pub(super) fn paused(&mut self, now: Instant) {
        if let Some(message) = &mut self.unfinished {
            (message.begun, message.grown) = (now, now);
        }
        if let Some(output) = &mut self.output {
            output.taken = now;
        }
    }

    /// Whether the peer sends a message, fast enough, or takes output. `patience` is how long it may be silent between
    /// messages.
    pub(super) fn show_life(&self, now: Instant, patience: Duration) -> bool {
        let patience = patience.max(MESSAGE_PATIENCE);
        let sends = self.unfinished.as_ref().is_some_and(|message| {
            now < message.grown + patience && now < message.begun + patience + time_for(message.bytes)
        });
        sends || self.output.as_ref().is_some_and(|output| now < output.taken + WRITE_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::link::testing::tcp_pair;

    const PATIENCE: Duration = Duration::from_secs(4);

    #[tokio::test(start_paused = true)]
    async fn a_message_that_grows_is_a_sign_and_one_byte_now_and_then_is_none() {
        let mut signs = Signs::default();
        let begun = Instant::now();
        signs.look(begun, 0);
        assert!(!signs.show_life(begun, PATIENCE), "nothing came");
        for (second, received) in [(10, 1), (20, 2)] {
            let now = begun + Duration::from_secs(second);
            signs.look(now, received);
            assert!(signs.show_life(now, PATIENCE));
        }
        // 30 s after the first byte two bytes are too few, and after the second one nothing has come for long enough.
        assert!(signs.show_life(begun + Duration::from_secs(39), PATIENCE));
        assert!(!signs.show_life(begun + Duration::from_secs(40), PATIENCE));
        // A part of the right size earns its time.
        signs.look(begun + Duration::from_secs(35), 2 + 20 * 16 * 1024);
        assert!(signs.show_life(begun + Duration::from_secs(59), PATIENCE));
        assert!(!signs.show_life(begun + Duration::from_secs(60), PATIENCE));
        signs.paused(begun + Duration::from_secs(60));
        assert!(signs.show_life(begun + Duration::from_secs(60), PATIENCE));
        signs.message_received(2 + 20 * 16 * 1024);
        assert!(!signs.show_life(begun + Duration::from_secs(60), PATIENCE), "the message is complete");
    }

    #[tokio::test]
    async fn output_that_the_peer_takes_is_a_sign() {
        let (mut server, link, mut client) = tcp_pair().await;
        let mut signs = Signs::default();
        signs.watch(Arc::clone(&link));
        let begun = Instant::now();
        signs.look(begun, 0);
        // More than the buffers of both sides.
        let writing = async { server.write_all(&vec![0; 32 << 20]).await };
        let reading = async {
            let mut acked = 0;
            let mut part = vec![0; 1 << 20];
            for minute in 1..4 {
                let now = begun + Duration::from_secs(60 * minute);
                // The peer's TCP acknowledges as it reads.
                while link.unacknowledged().is_none_or(|pending| pending.acked <= acked) {
                    client.read_exact(&mut part).await.unwrap();
                    tokio::task::yield_now().await;
                }
                signs.look(now, 0);
                acked = link.unacknowledged().unwrap().acked;
                assert!(signs.show_life(now + WRITE_TIMEOUT / 2, PATIENCE), "{minute}");
                assert!(!signs.show_life(now + WRITE_TIMEOUT, PATIENCE), "{minute}");
            }
        };
        tokio::select! {
            _ = writing => panic!("the buffers are smaller"),
            () = reading => {}
        }
    }
}
