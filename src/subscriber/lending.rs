//! A reader whose connection lends its output while it rests: who publishes writes there, and moves the reader on.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::broadcast::error::RecvError;

use crate::hub::{HubEvent, Outlet};
use crate::subscriber::{ReadState, Subscriber};

impl Subscriber {
    /// Polls for the next event of the hub.
    pub(super) fn poll_hub(&mut self, cx: &mut Context<'_>) -> Poll<Result<HubEvent, RecvError>> {
        self.receiver.note_read(self.read);
        self.receiver.poll_recv(cx)
    }

    /// Notes what was written to the connection while it had lent its output.
    pub(super) fn note_moved(&mut self) {
        if let Some(read) = self.receiver.moved_on() {
            self.read = read;
            self.delivered = self.delivered.max(read);
        }
    }

    /// Lends the output of the reader's connection to its hub: see [`Outlet`]. Returns whether nothing else is to be written
    /// before what comes next.
    pub(crate) fn lend(&mut self, outlet: impl FnOnce() -> Arc<dyn Outlet>) -> bool {
        self.note_moved();
        self.receiver.note_read(self.read);
        self.handle.lend(outlet);
        self.state == ReadState::Live && self.backlog.is_empty()
    }

    /// Closes this output when the address ends. Returns whether it has not ended.
    pub(crate) fn close_at_end(&self, outlet: impl FnOnce() -> Arc<dyn Outlet>) -> bool {
        self.handle.close_at_end(outlet);
        self.ended().is_none()
    }
}
