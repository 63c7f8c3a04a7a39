//! How clients are connected.

/// How a reader is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// WebSocket.
    Websocket,
    /// Server-Sent Events.
    Sse,
    /// The native long-poll. One presence lasts from the first poll to the end of the grace after the last.
    Poll,
    /// Today's x0 client. Its presence lasts as that of the native long-poll.
    Legacy,
}

impl Transport {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Websocket, Self::Sse, Self::Poll, Self::Legacy];

    /// The value of the label `transport`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::Sse => "sse",
            Self::Poll => "poll",
            Self::Legacy => "legacy",
        }
    }
}
