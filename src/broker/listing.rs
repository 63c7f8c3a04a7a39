//! Lists for operators: users, sessions and topics, a page at a time.

use tokio::sync::Semaphore;

use crate::broker::Broker;
use crate::engine::{Batch, EngineError, Position, Scope, Stored};
use crate::hub::{Connections, ReaderState};
use crate::message::{Address, FirstNames, Handle, NameRange, Seq, SessionId, TopicName, UserId};

/// How many lists are made at the same time that look at all sessions.
static SCANS: Semaphore = Semaphore::const_new(1);

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page<T> {
    /// Of what machines it tells.
    pub scope: Scope,
    /// What is on it, in order.
    pub items: Vec<T>,
    /// The last name of the page, if there may be another page.
    pub next: Option<String>,
}

/// A user in a list.
#[derive(Debug)]
pub(crate) struct ListedUser {
    /// The user.
    pub user: UserId,
    /// How many registered sessions it has.
    pub sessions: usize,
    /// Who reads them on this node.
    pub connections: Connections,
}

/// A session in a list.
#[derive(Debug)]
pub(crate) struct ListedSession {
    /// Its id.
    pub session: SessionId,
    /// Its public name.
    pub handle: Handle,
    /// The user that it belongs to.
    pub user: Option<UserId>,
    /// When its registration ends, in Unix milliseconds.
    pub expires_at: Option<u64>,
    /// Who reads it on this node.
    pub connections: Connections,
    /// What waits for it; `None` where other machines would have to be asked.
    pub stored: Option<Stored>,
}

/// A topic in a list.
#[derive(Debug)]
pub(crate) struct ListedTopic {
    /// The topic.
    pub topic: TopicName,
    /// Who reads it on this node.
    pub connections: Connections,
    /// What is in its history; `None` where other machines would have to be asked.
    pub stored: Option<Stored>,
}

/// How a topic stands.
#[derive(Debug)]
pub(crate) struct TopicState {
    /// Who reads it, on all nodes.
    pub connections: Connections,
    /// What is in its history.
    pub stored: Stored,
    /// How far its history reaches.
    pub position: Position,
}

/// How a mailbox stands.
#[derive(Debug)]
pub(crate) struct MailboxState {
    /// What waits in it.
    pub stored: Stored,
    /// Up to where it is acknowledged.
    pub acknowledged: Seq,
    /// The newest seq that was stored in it.
    pub newest: Seq,
    /// Its readers on this node.
    pub readers: Vec<ReaderState>,
}

/// Takes one item more than a page has. Returns the page, and the name that the next one begins after.
fn cut<T>(mut items: Vec<T>, limit: usize, name: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
    let has_next = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| has_next).map(name);
    (items, next)
}

impl Broker {
    /// A page of the users that have registered sessions.
    pub(crate) fn list_users(&self, range: NameRange<'_>, limit: usize) -> Page<ListedUser> {
        let (users, next) = cut(self.engine.users(range, limit + 1), limit, ToString::to_string);
        let items = users.into_iter().filter_map(|user| self.listed_user(user)).collect();
        Page { scope: self.engine.directory_scope(), items, next }
    }

    /// `None` if all its registrations have expired.
    fn listed_user(&self, user: UserId) -> Option<ListedUser> {
        let sessions = self.directory.known_sessions_of(&user);
        let connections = sessions
            .iter()
            .map(|session| self.hubs.presence(&session.into()))
            .fold(Connections::default(), Connections::with);
        (!sessions.is_empty()).then_some(ListedUser { user, sessions: sessions.len(), connections })
    }

    /// A page of the registered sessions in the order of their handles, for where ids are secrets.
    pub(crate) async fn list_sessions_by_handle(
        &self,
        after: Option<Handle>,
        limit: usize,
    ) -> Page<ListedSession> {
        let sessions = self.engine.sessions_by_handle(after, limit + 1);
        let (sessions, next) = cut(sessions, limit, |(handle, _)| handle.to_string());
        let sessions = sessions.into_iter().map(|(_, session)| session).collect();
        let items = self.listed_sessions(sessions).await;
        Page { scope: self.engine.directory_scope(), items, next }
    }

    /// A page of the sessions that are registered, connected to this node, or have messages, in the order of their ids. It
    /// looks at all of them.
    pub(crate) async fn list_sessions(&self, range: NameRange<'_>, limit: usize) -> Page<ListedSession> {
        let mut first = FirstNames::new(range, limit + 1);
        let scan = SCANS.acquire().await.expect("it is never closed");
        first.extend(self.hubs.sessions(range, limit + 1).await);
        first.extend(self.engine.sessions(range, limit + 1).await);
        drop(scan);
        let (sessions, next) = cut(first.into_names(), limit, ToString::to_string);
        let items = self.listed_sessions(sessions).await;
        // Who is connected to another node and registered nowhere is not known here.
        Page { scope: Scope::Node, items, next }
    }

    async fn listed_sessions(&self, sessions: Vec<SessionId>) -> Vec<ListedSession> {
        let mut items = Vec::with_capacity(sessions.len());
        for session in sessions {
            let (mailbox, registration) = (Address::from(&session), self.engine.registration(&session));
            items.push(ListedSession {
                handle: self.engine.handle(&session),
                expires_at: registration.as_ref().map(|registration| registration.expires_at),
                user: registration.and_then(|registration| registration.user),
                connections: self.hubs.presence(&mailbox),
                stored: self.stored_here(&mailbox).await,
                session,
            });
        }
        items
    }

    /// A page of the topics that are read on this node, or whose histories it stores.
    pub(crate) async fn list_topics(&self, range: NameRange<'_>, limit: usize) -> Page<ListedTopic> {
        let mut first = FirstNames::new(range, limit + 1);
        first.extend(self.hubs.topics(range, limit + 1));
        first.extend(self.engine.topics(range, limit + 1));
        let (topics, next) = cut(first.into_names(), limit, ToString::to_string);
        let mut items = Vec::with_capacity(topics.len());
        for topic in topics {
            let address = Address::Topic(topic.clone());
            let (connections, stored) = (self.hubs.presence(&address), self.stored_here(&address).await);
            items.push(ListedTopic { topic, connections, stored });
        }
        Page { scope: Scope::Node, items, next }
    }

    /// What is stored at an address, unless other machines would have to be asked.
    async fn stored_here(&self, address: &Address) -> Option<Stored> {
        match self.engine.directory_scope() {
            Scope::Node => Some(self.engine.stored(address).await),
            Scope::Cluster => None,
        }
    }

    /// How a topic stands.
    pub(crate) async fn topic_state(&self, topic: &TopicName) -> TopicState {
        let address = Address::Topic(topic.clone());
        let (connections, stored) =
            tokio::join!(self.engine.presence(&address), self.engine.stored(&address));
        TopicState { connections, stored, position: self.engine.position(&address).await }
    }

    /// How a mailbox stands.
    pub(crate) async fn mailbox_details(&self, mailbox: &Address) -> MailboxState {
        MailboxState {
            stored: self.engine.stored(mailbox).await,
            acknowledged: self.floor(mailbox).await,
            newest: self.engine.position(mailbox).await.newest,
            readers: self.hubs.readers_of(mailbox),
        }
    }

    /// At most `limit` messages of the history of a topic, after a seq.
    ///
    /// # Errors
    /// [`EngineError::Unreadable`].
    pub(crate) async fn history(
        &self,
        topic: &TopicName,
        after: Seq,
        limit: usize,
    ) -> Result<Batch, EngineError> {
        self.engine.read(&Address::Topic(topic.clone()), after, limit).await
    }
}
