//! Who reads here: this process is the only node.

use crate::engine::Embedded;
use crate::hub::{Connections, MemberPage};
use crate::message::{Address, SenderName, TopicName};

impl Embedded {
    /// See [`crate::engine::Engine::presence`].
    #[expect(clippy::unused_async, reason = "engines of several machines ask the others")]
    pub async fn presence(&self, address: &Address) -> Connections {
        self.shared.hubs.presence(address)
    }

    /// See [`crate::engine::Engine::members`].
    #[expect(clippy::unused_async, reason = "engines of several machines ask the others")]
    pub async fn members(&self, topic: &TopicName, after: Option<&SenderName>, limit: usize) -> MemberPage {
        self.shared.hubs.members().page(topic, after, limit)
    }

    /// See [`crate::engine::Engine::announce_members`].
    pub fn announce_members(&self, _topics: &[TopicName]) {}
}
