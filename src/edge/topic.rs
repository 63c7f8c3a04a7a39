//! A topic that a client asks for.

use crate::grant::{Denied, Grant};
use crate::message::TopicName;
use crate::protocol::Resume;

/// A topic that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicRequest {
    pub(crate) topic: TopicName,
    pub(crate) resume: Resume,
    /// Whether it is told how the members change.
    pub(crate) presence: bool,
}

impl TopicRequest {
    /// Checks that the caller may have what it asks for.
    ///
    /// # Errors
    /// [`Denied`] says what would allow it.
    pub(crate) fn check(&self, grant: &Grant) -> Result<(), Denied> {
        grant.may_read(&self.topic)?;
        if self.presence { grant.may_see_members(&self.topic) } else { Ok(()) }
    }
}
