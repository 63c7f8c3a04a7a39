//! Signs of life of a peer that completes no frame: bytes of a frame that is on its way, and output that its TCP takes.
//!
//! They are those of the whole connection, so a socket has them only where it has the connection for itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::link::{Link, WRITE_TIMEOUT, time_for};

/// How long a peer may send nothing in the middle of a frame.
const FRAME_PATIENCE: Duration = Duration::from_secs(30);

/// What is known about a peer below its frames. Looked at with each tick.
#[derive(Debug)]
pub(super) struct Signs {
    link: Arc<Link>,
    /// Bytes of the connection when the last frame was complete.
    at_last_frame: u64,
    unfinished: Option<UnfinishedFrame>,
    output: Option<PendingOutput>,
}

/// A frame that is not complete.
#[derive(Debug)]
struct UnfinishedFrame {
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
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { at_last_frame: link.received(), link, unfinished: None, output: None }
    }

    pub(super) fn frame_received(&mut self) {
        self.at_last_frame = self.link.received();
        (self.unfinished, self.output) = (None, None);
    }

    /// Looks for signs, when no frame was complete for a while.
    pub(super) fn look(&mut self, now: Instant) {
        // Whether the next ping is taken can be asked later.
        self.link.watch();
        let bytes = self.link.received().saturating_sub(self.at_last_frame);
        match &mut self.unfinished {
            Some(frame) if frame.bytes == bytes => {}
            Some(frame) => (frame.grown, frame.bytes) = (now, bytes),
            None if bytes > 0 => self.unfinished = Some(UnfinishedFrame { begun: now, grown: now, bytes }),
            None => {}
        }
        let pending = self.link.unacknowledged().filter(|pending| pending.bytes > 0);
        self.output = match (pending, self.output.take()) {
            (None, _) => None,
            (Some(pending), Some(output)) if output.acked == pending.acked => Some(output),
            (Some(pending), _) => Some(PendingOutput { acked: pending.acked, taken: now }),
        };
    }

    /// A pause of this process does not count.
    pub(super) fn paused(&mut self, now: Instant) {
        if let Some(frame) = &mut self.unfinished {
            (frame.begun, frame.grown) = (now, now);
        }
        if let Some(output) = &mut self.output {
            output.taken = now;
        }
    }

    /// Whether the peer sends a frame, fast enough, or takes output. `patience` is how long it may be silent between frames.
    pub(super) fn show_life(&self, now: Instant, patience: Duration) -> bool {
        let patience = patience.max(FRAME_PATIENCE);
        let sends = self.unfinished.as_ref().is_some_and(|frame| {
            now < frame.grown + patience && now < frame.begun + patience + time_for(frame.bytes)
        });
        sends || self.output.as_ref().is_some_and(|output| now < output.taken + WRITE_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::link::MonitoredStream;
    use crate::link::testing::tcp_pair;

    const PATIENCE: Duration = Duration::from_secs(4);

    /// A connection in memory: our side, its signs, the peer's side.
    fn connection() -> (MonitoredStream<tokio::io::DuplexStream>, Signs, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let link = Link::new();
        (MonitoredStream::opaque(ours, Arc::clone(&link)), Signs::new(link), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_grows_is_a_sign_and_one_byte_now_and_then_is_none() {
        let (mut server, mut signs, mut client) = connection();
        let begun = Instant::now();
        signs.look(begun);
        assert!(!signs.show_life(begun, PATIENCE), "nothing came");
        for second in [10, 20] {
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
            let now = begun + Duration::from_secs(second);
            signs.look(now);
            assert!(signs.show_life(now, PATIENCE));
        }
        // 30 s after the first byte two bytes are too few, and after the second one nothing has come for long enough.
        assert!(signs.show_life(begun + Duration::from_secs(39), PATIENCE));
        assert!(!signs.show_life(begun + Duration::from_secs(40), PATIENCE));
        // A part of the right size earns its time.
        let mut part = vec![0; 20 * 16 * 1024];
        client.write_all(&part).await.unwrap();
        server.read_exact(&mut part).await.unwrap();
        signs.look(begun + Duration::from_secs(35));
        assert!(signs.show_life(begun + Duration::from_secs(59), PATIENCE));
        assert!(!signs.show_life(begun + Duration::from_secs(60), PATIENCE));
        signs.paused(begun + Duration::from_secs(60));
        assert!(signs.show_life(begun + Duration::from_secs(60), PATIENCE));
        signs.frame_received();
        assert!(!signs.show_life(begun + Duration::from_secs(60), PATIENCE), "the frame is complete");
    }

    #[tokio::test]
    async fn output_that_the_peer_takes_is_a_sign() {
        let (mut server, link, mut client) = tcp_pair().await;
        let mut signs = Signs::new(link);
        let begun = Instant::now();
        signs.look(begun);
        // More than the buffers of both sides.
        let writing = async { server.write_all(&vec![0; 32 << 20]).await };
        let reading = async {
            let mut acked = 0;
            let mut part = vec![0; 1 << 20];
            for minute in 1..4 {
                let now = begun + Duration::from_secs(60 * minute);
                // The peer's TCP acknowledges as it reads.
                while signs.link.unacknowledged().is_none_or(|pending| pending.acked <= acked) {
                    client.read_exact(&mut part).await.unwrap();
                    tokio::task::yield_now().await;
                }
                signs.look(now);
                acked = signs.link.unacknowledged().unwrap().acked;
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
