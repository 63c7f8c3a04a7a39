//! The output of a connection that rests, which is lent to what is published to its topics.

use std::sync::Arc;

use crate::hub::Outlet;
use crate::link::LentOutput;
use crate::transport::websocket::conversation::Conversation;
use crate::transport::websocket::socket::{ENCODING, Frame};

impl Conversation {
    /// Lends the output, if nothing is to be written and only topics and the mailbox are waited for. Until it is taken back,
    /// nothing is written here, and nothing is taken from topics.
    pub(in crate::transport::websocket) fn lend_output(&mut self) {
        if !self.output.is_flushed() || !self.topics.has_messages() {
            return;
        }
        if self.lent.is_none() {
            self.lent = self.timers.link().and_then(|link| LentOutput::new(link, &ENCODING));
        }
        let Some(lent) = &self.lent else { return };
        // After the end of its session the caller reads no topic either.
        let outlet = || Arc::clone(lent) as Arc<dyn Outlet>;
        let is_open = self.mailbox.as_ref().is_none_or(|mailbox| mailbox.close_at_end(outlet));
        lent.allow(is_open && self.topics.lend(lent));
        lent.lend();
    }

    /// Takes the output back.
    pub(in crate::transport::websocket) fn take_output_back(&mut self) {
        if let Some(rest) = self.lent.as_ref().and_then(|lent| lent.take_back()) {
            self.output.push(Frame::rest(rest));
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Some(lent) = &self.lent {
            lent.close();
        }
    }
}
