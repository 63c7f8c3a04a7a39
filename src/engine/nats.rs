//! The engine of several machines: NATS JetStream stores, orders, replicates and carries messages.
//!
//! A node keeps nothing that another node or a restart needs. A message is stored under the subject of its address and
//! republished to the nodes that read it. How far a mailbox is acknowledged is a record of its own; what it covers is deleted
//! later. Each session has one record, changed by compare and set, of which all nodes hold a copy.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::millis;
use crate::engine::{
    Append, Arrivals, Batch, Commit, Contents, DecryptError, EngineError, Expired, Fatal, Health, Lookup,
    Position, Register, RegisterError, Registration, Settings,
};
use crate::hub::{Connections, Hubs, MemberPage};
use crate::message::{Address, Epoch, Handle, Publication, SenderName, Seq, SessionId, TopicName, UserId};

mod allowance;
mod appending;
mod asking;
mod directory;
mod envelope;
mod error;
mod feeder;
mod feeding;
mod feeds;
mod floors;
mod in_flight;
mod lanes;
mod leaving;
mod link;
mod listing;
mod load;
mod migration;
mod moved;
mod names;
pub(in crate::engine) mod nets;
mod node;
mod options;
mod owners;
mod peers;
mod reading;
mod receipting;
mod recent;
mod registering;
mod scheduling;
mod seen;
mod settling;
mod setup;
mod sharing;
mod standing;
mod streams;
mod tallies;
mod trimming;
mod urls;

pub use error::NatsError;
pub use feeds::Feeds;
pub(crate) use link::NatsConnection;
pub use migration::{MigrateError, Migrated, migrate};
pub use options::NatsOptions;

use node::Core;
use setup::Signals;

/// How long the last floors may take at the end.
const CLOSE: Duration = Duration::from_secs(3);

/// How many digits of its random name a node without a name shows to clients.
const NODE_DIGITS: usize = 8;

/// What "stored" means with one replica, and with several.
const UNREPLICATED: &str = "unreplicated";
const REPLICATED: &str = "replicated";

/// A node of several machines; cheap to clone.
#[derive(Debug, Clone)]
pub struct Nats(Arc<Running>);

/// Ends the tasks of a node with its last handle.
#[derive(Debug)]
struct Running {
    core: Arc<Core>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.core.stop.cancel();
    }
}

impl Nats {
    /// Connects a node. Its hubs must tell `feeds` which addresses are read.
    ///
    /// # Errors
    /// [`NatsError`] says what to change.
    pub async fn start(
        settings: Settings,
        (hubs, feeds): (Hubs, Arc<Feeds>),
        options: NatsOptions,
    ) -> Result<Self, NatsError> {
        let signals = Signals::default();
        let prepared = setup::prepare(&options, &settings, &signals).await?;
        let core = Arc::new(Core::new(settings, options, (hubs, feeds), prepared, signals));
        let failed = |what: &str, error: &error::AskError| NatsError::Request {
            what: what.to_owned(),
            reason: error.reason(),
        };
        // First the subscription, then what was there before.
        let changes = core.link.subscribe(core.names.live_registrations()).await;
        let changes = changes.map_err(|error| failed("listen to registrations", &error))?;
        core.catch_up().await.map_err(|error| failed("read the registrations", &error))?;
        let ears = core.meet().await.map_err(|error| failed("listen to other nodes", &error))?;
        let leaders = core.link.subscribe(format!("{}.*", feeding::LEADERS)).await;
        let leaders = leaders.map_err(|error| failed("listen to elections", &error))?;
        let answers = core.link.subscribe(core.link.all_answers()).await;
        let answers = answers.map_err(|error| failed("listen to answers", &error))?;
        let stop = &core.stop;
        tokio::spawn(Arc::clone(&core).run_answers(answers));
        tokio::spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&core).run_directory(changes)));
        tokio::spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&core).run_feeds()));
        tokio::spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&core).run_leaders(leaders)));
        tokio::spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&core).purge_when_due()));
        if core.has_schedules {
            tokio::spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&core).run_due()));
        }
        tokio::spawn(stop.clone().run_until_cancelled_owned(Core::run_checks(Arc::downgrade(&core))));
        tokio::spawn(stop.clone().run_until_cancelled_owned(Core::run_ears(Arc::downgrade(&core), ears)));
        Ok(Self(Arc::new(Running { core })))
    }

    fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    /// See [`crate::engine::Engine::append`].
    pub fn append(&self, append: Append) -> Commit {
        self.core().append(append)
    }

    /// See [`crate::engine::Engine::append_each`].
    pub fn append_each(&self, append: Append, others: Vec<Address>) -> Vec<Commit> {
        append.into_each(others).map(|append| self.append(append)).collect()
    }

    /// See [`crate::engine::Engine::publish_volatile`].
    #[must_use]
    pub fn publish_volatile(&self, address: &Address, publication: &Arc<Publication>) -> bool {
        let core = self.core();
        let Some(body) = envelope::encode_volatile(publication) else { return false };
        if core.refusing().is_some() {
            return false;
        }
        core.link.publish_now(core.place(address).live, body)
    }

    /// See [`crate::engine::Engine::read`].
    ///
    /// # Errors
    /// [`EngineError::Unreadable`].
    pub async fn read(&self, address: &Address, after: Seq, limit: usize) -> Result<Batch, EngineError> {
        self.core().read(address, after, limit).await
    }

    /// See [`crate::engine::Engine::read_at_hand`].
    #[must_use]
    pub fn read_at_hand(&self, _: &Address, _: Seq, _: usize) -> Option<Batch> {
        None
    }

    /// See [`crate::engine::Engine::trim`].
    pub fn trim(&self, address: &Address, through: Seq) {
        self.core().trim(address, through);
    }

    /// See [`crate::engine::Engine::held_too_long`].
    #[must_use]
    pub fn held_too_long(&self, address: &Address, acknowledged: Seq) -> Seq {
        self.core().held_too_long(address, acknowledged)
    }

    /// See [`crate::engine::Engine::register`].
    pub fn register(&self, register: &Register) -> Commit<RegisterError> {
        let (answer, decided) = oneshot::channel();
        let (core, register) = (Arc::clone(self.core()), register.clone());
        tokio::spawn(async move {
            // Nobody may wait for it any more.
            _ = answer.send(core.register(&register).await);
        });
        Commit::undecided(decided)
    }

    /// See [`crate::engine::Engine::end`].
    pub fn end(&self, session: &SessionId, revoked_for: Duration) -> Commit {
        let (answer, decided) = oneshot::channel();
        let (core, session) = (Arc::clone(self.core()), session.clone());
        tokio::spawn(async move {
            // Nobody may wait for it any more.
            _ = answer.send(core.end(&session, revoked_for).await);
        });
        Commit::undecided(decided)
    }

    /// See [`crate::engine::Engine::presence`].
    pub async fn presence(&self, address: &Address) -> Connections {
        self.core().presence(address).await
    }

    /// See [`crate::engine::Engine::members`].
    pub async fn members(&self, topic: &TopicName, after: Option<&SenderName>, limit: usize) -> MemberPage {
        self.core().members(topic, after, limit).await
    }

    /// See [`crate::engine::Engine::announce_members`].
    pub fn announce_members(&self, topics: &[TopicName]) {
        self.core().announce_members(topics);
    }

    /// See [`crate::engine::Engine::confirm`].
    pub async fn confirm(&self, _: Lookup<'_>) {
        if let Err(error) = self.core().catch_up().await {
            tracing::debug!(reason = %error.reason(), "the directory may be out of date");
        }
    }

    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.core().arrivals
    }

    /// See [`crate::engine::Engine::is_revoked`].
    #[must_use]
    pub fn is_revoked(&self, session: &SessionId) -> bool {
        self.core().directory.lock().table.is_revoked(session, self.core().now())
    }

    /// See [`crate::engine::Engine::registration`].
    #[must_use]
    pub fn registration(&self, session: &SessionId) -> Option<Registration> {
        self.core().directory.lock().table.get(session, self.core().now()).cloned()
    }

    /// See [`crate::engine::Engine::session_of`].
    #[must_use]
    pub fn session_of(&self, handle: Handle) -> Option<SessionId> {
        self.core().directory.lock().table.session_of(handle, self.core().now()).cloned()
    }

    /// See [`crate::engine::Engine::sessions_of`].
    #[must_use]
    pub fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        self.core().directory.lock().table.sessions_of(user, self.core().now())
    }

    /// See [`crate::engine::Engine::handle`].
    #[must_use]
    pub fn handle(&self, session: &SessionId) -> Handle {
        self.core().handles.of(session)
    }

    /// See [`crate::engine::Engine::mac`].
    #[must_use]
    pub fn mac(&self, user: &UserId, bits: [u8; 16]) -> [u8; 16] {
        self.core().handles.mac(user, bits)
    }

    /// See [`crate::engine::Engine::encrypt`].
    #[must_use]
    pub fn encrypt(&self, content: &[u8], lifetime: Duration) -> String {
        self.core().cipher.encrypt(content, self.core().now().saturating_add(millis(lifetime)))
    }

    /// See [`crate::engine::Engine::decrypt`].
    ///
    /// # Errors
    /// [`DecryptError`].
    pub fn decrypt(&self, text: &str) -> Result<Vec<u8>, DecryptError> {
        self.core().cipher.decrypt(text, self.core().now())
    }

    /// See [`crate::engine::Engine::waiting`].
    pub async fn waiting(&self, mailbox: &Address) -> usize {
        self.core().waiting(mailbox).await
    }

    /// See [`crate::engine::Engine::position`].
    pub async fn position(&self, address: &Address) -> Position {
        self.core().position(address).await
    }

    /// See [`crate::engine::Engine::newest`].
    ///
    /// # Errors
    /// [`EngineError::Unavailable`]: the stream does not answer.
    pub async fn newest(&self, address: &Address, at_least: Seq) -> Result<Seq, EngineError> {
        let stream = self.core().place(address).stream;
        let known = self.core().known_newest(stream);
        if known >= at_least && known > Seq::START {
            return Ok(known);
        }
        self.core().confirm_newest(stream, at_least).await.map_err(|error| Core::unavailable(&error))
    }

    /// See [`crate::engine::Engine::origin`].
    #[must_use]
    pub fn origin(&self, address: &Address) -> Seq {
        self.core().origin(self.core().place(address).stream)
    }

    /// See [`crate::engine::Engine::epoch`].
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.core().epoch()
    }

    /// See [`crate::engine::Engine::durability`].
    #[must_use]
    pub fn durability(&self) -> &'static str {
        if self.core().options.replicas > 1 { REPLICATED } else { UNREPLICATED }
    }

    /// See [`crate::engine::Engine::node`].
    #[must_use]
    pub fn node(&self) -> &str {
        let core = self.core();
        core.options.node.as_deref().unwrap_or(&core.node[..NODE_DIGITS])
    }

    /// See [`crate::engine::Engine::fatal`].
    #[must_use]
    pub fn fatal(&self) -> &Fatal {
        &self.core().fatal
    }

    /// See [`crate::engine::Engine::health`].
    #[must_use]
    pub fn health(&self) -> Health {
        let failing: Vec<Arc<str>> = self.core().failing().into_iter().collect();
        Health { is_unreachable: !failing.is_empty(), failing }
    }

    /// The state of its connection.
    #[must_use]
    pub(crate) fn connection(&self) -> NatsConnection {
        self.core().link.connection()
    }

    /// Refuses what comes from now on, and waits until the floors that are on their way are stored.
    pub fn close(&self) {
        self.core().stop.cancel();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let stored = tokio::time::timeout(CLOSE, self.core().floors.all_stored());
        if tokio::task::block_in_place(|| runtime.block_on(stored)).is_err() {
            tracing::warn!("the last acknowledgements are not stored: NATS does not answer");
        }
    }

    /// See [`crate::engine::Engine::contents`].
    #[must_use]
    pub fn contents(&self) -> Contents {
        self.core().contents()
    }

    /// NATS deletes what has expired. What the nodes delete themselves is counted there.
    #[must_use]
    pub fn expire(&self) -> Expired {
        Expired { messages: 0, more: false }
    }

    /// The nets of its feed.
    #[cfg(test)]
    pub(in crate::engine) fn nets(&self) -> &nets::Nets {
        &self.core().signals.nets
    }

    /// Connects again.
    #[cfg(test)]
    pub(in crate::engine) async fn reconnect(&self) {
        self.core().link.client().force_reconnect().await.unwrap();
    }

    /// What NATS republishes messages of an address under.
    #[cfg(test)]
    pub(in crate::engine) fn live_subject(&self, address: &Address) -> String {
        self.core().place(address).live
    }

    /// Whether an address is subscribed to.
    #[cfg(test)]
    pub(in crate::engine) fn is_subscribed(&self, address: &Address) -> bool {
        self.core().feeds.has(address)
    }
}
