//! A reader whose connection lends its output while it rests: who publishes writes there, and moves the reader on.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::broadcast::error::RecvError;

use crate::hub::{HubEvent, Outlet};
use crate::message::Seq;
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
        let has_all = self.has_all();
        self.handle.set_takes_one(has_all);
        has_all
    }

    /// Whether nothing else is to be delivered before what comes next.
    fn has_all(&self) -> bool {
        self.state == ReadState::Live && self.backlog.is_empty()
    }

    /// Closes this output when the address ends. Returns whether it has not ended.
    pub(crate) fn close_at_end(&self, outlet: impl FnOnce() -> Arc<dyn Outlet>) -> bool {
        self.handle.close_at_end(outlet);
        self.ended().is_none()
    }

    /// Lends the output of the reader's connection for the next message of this mailbox, if the connection has `room` for it.
    /// Returns whether it is lent so.
    pub(crate) fn lend_for_one(&mut self, room: bool) -> bool {
        self.receiver.note_read(self.read);
        let takes_one = room && self.has_all();
        self.handle.set_takes_one(takes_one);
        takes_one
    }

    /// Notes what was written to the connection while its output was lent for the next message. Seq and size of a stored message.
    pub(crate) fn take_written(&mut self) -> Option<(Seq, usize)> {
        self.note_moved();
        if let Some(through) = self.handle.settle() {
            self.engine.trim(self.handle.address(), through);
        }
        self.handle.take_written().map(|size| (self.read, size))
    }
}
