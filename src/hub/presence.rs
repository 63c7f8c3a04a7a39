//! Who reads an address: how many connections, by transport.

use serde::Serialize;
use utoipa::ToSchema;

use crate::protocol::Transport;

/// Connections by transport. Who polls is there until 15 seconds after the last poll.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Connections {
    /// WebSockets.
    pub websocket: usize,
    /// Event streams.
    pub sse: usize,
    /// Native long-polls.
    pub poll: usize,
    /// Pages of today's x0 client.
    pub legacy: usize,
}

impl Connections {
    /// Counts one more.
    pub fn add(&mut self, transport: Transport) {
        *match transport {
            Transport::Websocket => &mut self.websocket,
            Transport::Sse => &mut self.sse,
            Transport::Poll => &mut self.poll,
            Transport::Legacy => &mut self.legacy,
        } += 1;
    }

    /// The sum of both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            websocket: self.websocket + other.websocket,
            sse: self.sse + other.sse,
            poll: self.poll + other.poll,
            legacy: self.legacy + other.legacy,
        }
    }
}
