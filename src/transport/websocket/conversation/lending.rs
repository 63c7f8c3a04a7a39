//! The output of a connection that rests, which is lent to what is published to its topics and its mailbox.

use std::sync::Arc;

use crate::hub::Outlet;
use crate::link::LentOutput;
use crate::subscriber::Subscriber;
use crate::transport::websocket::conversation::Conversation;
use crate::transport::websocket::socket::{ENCODING, Frame};

impl Conversation {
    /// Lends the output, if nothing is to be written and only topics and the mailbox are waited for. Until it is taken back,
    /// nothing is written here, and nothing is taken from topics and the mailbox.
    pub(in crate::transport::websocket) fn lend_output(&mut self) {
        let reads_topics = self.topics.has_messages();
        if !self.output.is_flushed() || !reads_topics && self.mailbox.is_none() {
            return;
        }
        if self.lent.is_none() {
            self.lent = self.timers.link().and_then(|link| LentOutput::new(link, &ENCODING));
        }
        let Some(lent) = &self.lent else { return };
        let outlet = || Arc::clone(lent) as Arc<dyn Outlet>;
        let for_topics = reads_topics.then(|| self.topics.lend(lent));
        let for_mailbox = self.mailbox.as_mut().map(|mailbox| {
            // After the end of its session the caller reads no topic either.
            mailbox.close_at_end(outlet).then(|| mailbox.lend_for_one(self.window.admits_small()))
        });
        let allowed = match (for_topics, for_mailbox) {
            (_, Some(None)) | (None, None) => false,
            (Some(for_topics), _) => for_topics,
            (None, Some(Some(for_mailbox))) => for_mailbox,
        };
        lent.lend_if(allowed);
    }

    /// Takes the output back.
    pub(in crate::transport::websocket) fn take_output_back(&mut self) {
        let Some(lent) = &self.lent else { return };
        if let Some(rest) = lent.take_back() {
            self.output.push(Frame::rest(rest));
        }
        if let Some((seq, size)) = self.mailbox.as_mut().and_then(Subscriber::take_written) {
            self.window.message_delivered(seq, size);
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
