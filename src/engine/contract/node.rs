//! A second engine: a node of several machines, all in one process.
//!
//! A primary on the embedded engine holds what all machines together know. A node reaches it only over a simulated
//! network: every call takes a while, answers come late, publications are lost or come out of order. Replicas that lag
//! answer reads, and the node's copy of the directory lags too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

mod changes;

use changes::carry_out;

use super::chance::Chance;
use super::feed::Feeds;
use crate::engine::{
    Append, Arrivals, Batch, Commit, DecryptError, Embedded, EngineError, Expired, Fatal, Health, Lookup,
    Position, Register, RegisterError, Registration, Settings, Stored,
};
use crate::hub::{EndReason, Hubs};
use crate::message::{
    Address, Epoch, Handle, Item, NameRange, Publication, Seq, SessionId, TopicName, UserId,
};
use crate::sync::lock;

mod members;

/// The slots of a primary's hubs.
const SLOTS: usize = 64;

/// What all nodes share.
#[derive(Debug)]
pub(crate) struct Cluster {
    primary: Mutex<(Embedded, Hubs)>,
    /// The hubs of each node.
    hubs: Mutex<Vec<Hubs>>,
}

impl Cluster {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self { primary: Mutex::new(Self::primary(settings)), hubs: Mutex::default() })
    }

    fn primary(settings: Settings) -> (Embedded, Hubs) {
        let hubs = Hubs::new(SLOTS);
        (Embedded::in_memory(settings, hubs.clone()), hubs)
    }

    /// Loses everything. The store begins anew, with another epoch.
    pub(crate) fn recreate(&self, settings: Settings) {
        *lock(&self.primary) = Self::primary(settings);
    }

    fn engine(&self) -> Embedded {
        lock(&self.primary).0.clone()
    }
}

/// A change on its way to the primary.
#[derive(Debug)]
enum Change {
    Append(Append, oneshot::Sender<Result<Seq, EngineError>>),
    Register(Register, oneshot::Sender<Result<Seq, RegisterError>>),
    End(SessionId, Duration, oneshot::Sender<Result<Seq, EngineError>>),
}

/// What this node's copy of the directory still says of a session that has changed.
#[derive(Debug, Clone)]
struct Outdated {
    id: u64,
    registration: Option<Registration>,
    is_revoked: bool,
}

/// One node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: Arc<Cluster>,
    settings: Settings,
    hubs: Hubs,
    feeds: Arc<Feeds>,
    chance: Chance,
    epoch: Mutex<Epoch>,
    arrivals: Arrivals,
    fatal: Fatal,
    /// Takes changes to the primary, in the order of the calls.
    changes: mpsc::UnboundedSender<Change>,
    /// The newest seq that this node stored at each address. Its reads find all of that.
    stored: Mutex<HashMap<Address, Seq>>,
    outdated: Mutex<HashMap<SessionId, Outdated>>,
    next_id: AtomicU64,
}

impl Node {
    /// A node of this cluster with hubs of its own.
    pub(crate) fn start(cluster: &Arc<Cluster>, settings: Settings, slots: usize, seed: u64) -> (Self, Hubs) {
        let feeds = Arc::new(Feeds::default());
        let hubs = Hubs::watched(slots, feeds.clone());
        lock(&cluster.hubs).push(hubs.clone());
        let (changes, receiver) = mpsc::unbounded_channel();
        let chance = Chance::new(seed);
        let inner = Arc::new(Inner {
            cluster: Arc::clone(cluster),
            settings,
            hubs: hubs.clone(),
            feeds: Arc::clone(&feeds),
            chance: chance.clone(),
            epoch: Mutex::new(cluster.engine().epoch()),
            arrivals: Arrivals::new(),
            fatal: Fatal::default(),
            changes,
            stored: Mutex::default(),
            outdated: Mutex::default(),
            next_id: AtomicU64::new(0),
        });
        let primary = Arc::clone(cluster);
        tokio::spawn(feeds.run(move || lock(&primary.primary).clone(), hubs.clone(), chance));
        tokio::spawn(carry_out(Arc::downgrade(&inner), receiver));
        (Self(inner), hubs)
    }

    fn primary(&self) -> Embedded {
        self.0.cluster.engine()
    }

    fn change<E: From<EngineError>>(
        &self,
        change: impl FnOnce(oneshot::Sender<Result<Seq, E>>) -> Change,
    ) -> Commit<E> {
        let (decide, decided) = oneshot::channel();
        // An error drops the sender, and so tells that the node is closed.
        _ = self.0.changes.send(change(decide));
        Commit::undecided(decided)
    }

    /// Notices that the store began anew.
    pub(crate) fn notice_epoch(&self) {
        *lock(&self.0.epoch) = self.primary().epoch();
        lock(&self.0.stored).clear();
        self.0.hubs.change_epoch();
        self.0.feeds.close(None);
    }

    pub(crate) fn append(&self, append: Append) -> Commit {
        self.change(|answer| Change::Append(append, answer))
    }

    pub(crate) fn append_each(&self, append: Append, others: Vec<Address>) -> Vec<Commit> {
        append.into_each(others).map(|append| self.append(append)).collect()
    }

    pub(crate) fn register(&self, register: &Register) -> Commit<RegisterError> {
        self.change(|answer| Change::Register(register.clone(), answer))
    }

    pub(crate) fn end(&self, session: &SessionId, revoked_for: Duration) -> Commit {
        self.change(|answer| Change::End(session.clone(), revoked_for, answer))
    }

    pub(crate) fn users(&self, range: NameRange<'_>, limit: usize) -> Vec<UserId> {
        self.primary().users(range, limit)
    }

    pub(crate) fn sessions_by_handle(&self, after: Option<Handle>, limit: usize) -> Vec<(Handle, SessionId)> {
        self.primary().sessions_by_handle(after, limit)
    }

    pub(crate) async fn sessions(&self, range: NameRange<'_>, limit: usize) -> Vec<SessionId> {
        self.primary().sessions(range, limit).await
    }

    pub(crate) fn topics(&self, _: NameRange<'_>, _: usize) -> Vec<TopicName> {
        Vec::new()
    }

    pub(crate) async fn stored(&self, address: &Address) -> Stored {
        self.0.chance.delay().await;
        self.primary().stored(address).await
    }

    pub(crate) fn publish_volatile(&self, address: &Address, publication: &Arc<Publication>) -> bool {
        self.primary().publish_volatile(address, publication)
    }

    pub(crate) async fn read(
        &self,
        address: &Address,
        after: Seq,
        limit: usize,
    ) -> Result<Batch, EngineError> {
        self.0.feeds.subscribed(address).await;
        for attempt in 0.. {
            self.0.chance.delay().await;
            let batch = self.primary().read(address, after, limit).await?;
            // First two replicas that lag, then the leader.
            let batch = if attempt < 2 { self.lag(batch, after).await } else { batch };
            let stored = lock(&self.0.stored).get(address).copied().unwrap_or_default();
            if batch.more || batch.cursor >= stored || attempt >= 2 {
                return Ok(batch);
            }
        }
        unreachable!("the leader's answer is taken")
    }

    pub(crate) fn read_at_hand(&self, _: &Address, _: Seq, _: usize) -> Option<Batch> {
        None
    }

    /// The answer of a replica that does not have the newest messages yet.
    async fn lag(&self, mut batch: Batch, after: Seq) -> Batch {
        let behind = self.0.chance.up_to(6).saturating_sub(2);
        let newest =
            self.primary().newest(&Address::Session(nobody()), Seq::START).await.expect("it is in memory");
        let known = Seq(newest.0.saturating_sub(behind));
        let seq = |item: &Item| match item {
            Item::Message(message) => message.seq().unwrap_or_default(),
            Item::Gap(gap) => gap.to,
        };
        let kept = batch.items.iter().position(|item| seq(item) > known).unwrap_or(batch.items.len());
        if kept < batch.items.len() {
            batch.items.truncate(kept);
            batch.cursor = batch.items.last().map_or(after, seq);
            batch.more = false;
        }
        batch
    }

    pub(crate) fn trim(&self, address: &Address, through: Seq) {
        self.primary().trim(address, through);
    }

    pub(crate) fn held_too_long(&self, address: &Address, acknowledged: Seq) -> Seq {
        self.primary().held_too_long(address, acknowledged)
    }

    pub(crate) async fn confirm(&self, lookup: Lookup<'_>) {
        self.0.chance.delay().await;
        let primary = self.primary();
        let about = |session: &SessionId, old: &Outdated| match lookup {
            Lookup::Session(one) => session == one,
            Lookup::Handle(handle) => primary.handle(session) == handle,
            Lookup::User(user) => {
                let belongs = |registration: Option<&Registration>| {
                    registration.and_then(|registration| registration.user.as_ref()) == Some(user)
                };
                belongs(old.registration.as_ref()) || belongs(primary.registration(session).as_ref())
            }
        };
        lock(&self.0.outdated).retain(|session, old| !about(session, old));
    }

    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.0.arrivals
    }

    pub(crate) fn is_revoked(&self, session: &SessionId) -> bool {
        match lock(&self.0.outdated).get(session) {
            Some(old) => old.is_revoked,
            None => self.primary().is_revoked(session),
        }
    }

    pub(crate) fn registration(&self, session: &SessionId) -> Option<Registration> {
        match lock(&self.0.outdated).get(session) {
            Some(old) => old.registration.clone().filter(|old| old.expires_at > self.0.settings.clock.now()),
            None => self.primary().registration(session),
        }
    }

    pub(crate) fn session_of(&self, handle: Handle) -> Option<SessionId> {
        let primary = self.primary();
        let outdated: Option<SessionId> =
            lock(&self.0.outdated).keys().find(|session| primary.handle(session) == handle).cloned();
        match outdated {
            Some(session) => self.registration(&session).map(|_| session),
            None => primary.session_of(handle),
        }
    }

    pub(crate) fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        let mut sessions = self.primary().sessions_of(user);
        let outdated: Vec<SessionId> = lock(&self.0.outdated).keys().cloned().collect();
        sessions.retain(|session| !outdated.contains(session));
        sessions.extend(outdated.into_iter().filter(|session| {
            self.registration(session).is_some_and(|registration| registration.user.as_ref() == Some(user))
        }));
        sessions.sort();
        sessions
    }

    pub(crate) fn handle(&self, session: &SessionId) -> Handle {
        self.primary().handle(session)
    }

    pub(crate) fn mac(&self, user: &UserId, bits: [u8; 16]) -> [u8; 16] {
        self.primary().mac(user, bits)
    }

    pub(crate) fn encrypt(&self, content: &[u8], lifetime: Duration) -> String {
        self.primary().encrypt(content, lifetime)
    }

    pub(crate) fn decrypt(&self, text: &str) -> Result<Vec<u8>, DecryptError> {
        self.primary().decrypt(text)
    }

    pub(crate) async fn waiting(&self, mailbox: &Address) -> usize {
        self.0.chance.delay().await;
        self.primary().waiting(mailbox).await
    }

    pub(crate) async fn position(&self, address: &Address) -> Position {
        self.0.chance.delay().await;
        self.primary().position(address).await
    }

    pub(crate) async fn newest(&self, address: &Address, at_least: Seq) -> Result<Seq, EngineError> {
        let known = lock(&self.0.stored).get(address).copied().unwrap_or_default();
        if known >= at_least && known > Seq::START {
            return Ok(known);
        }
        self.0.chance.delay().await;
        self.primary().newest(address, at_least).await
    }

    pub(crate) fn origin(&self, address: &Address) -> Seq {
        self.primary().origin(address)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        lock(&self.0.epoch).clone()
    }

    pub(crate) fn durability(&self) -> &'static str {
        self.primary().durability()
    }

    pub(crate) fn fatal(&self) -> &Fatal {
        &self.0.fatal
    }

    pub(crate) fn health(&self) -> Health {
        self.primary().health()
    }

    /// A node keeps nothing.
    #[expect(clippy::unused_self, reason = "engines have this method")]
    pub(crate) fn close(&self) {}

    pub(crate) fn expire(&self) -> Expired {
        self.primary().expire()
    }

    /// Whether an address is subscribed to at the primary.
    pub(crate) fn is_subscribed(&self, address: &Address) -> bool {
        self.0.feeds.has(address)
    }
}

/// A session that nobody has.
fn nobody() -> SessionId {
    SessionId::new("nobody").expect("a name")
}
