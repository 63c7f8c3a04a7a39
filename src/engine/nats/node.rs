//! What all parts of a node share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::engine::crypt::Cipher;
use crate::engine::handles::Handles;
use crate::engine::nats::allowance::Allowances;
use crate::engine::nats::directory::Directory;
use crate::engine::nats::error::AskError;
use crate::engine::nats::feeds::Feeds;
use crate::engine::nats::floors::Floors;
use crate::engine::nats::lanes::Lanes;
use crate::engine::nats::link::Link;
use crate::engine::nats::moved::MovedIds;
use crate::engine::nats::names::{Names, Place};
use crate::engine::nats::options::NatsOptions;
use crate::engine::nats::peers::Peers;
use crate::engine::nats::recent::Recent;
use crate::engine::nats::setup::{Prepared, Signals};
use crate::engine::nats::streams::{HEARD, StreamSpec, StreamState, info, parts, state};
use crate::engine::nats::tallies::Tallies;
use crate::engine::{Arrivals, Contents, EngineError, Fatal, Oldest, Settings, Usage};
use crate::hub::Hubs;
use crate::message::{Address, Epoch, Seq};
use crate::sync::lock;

/// Reads on their way at the same time: what they bring counts in the memory budget only when it is here.
const READS: usize = 64;

/// What all parts of a node share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) settings: Settings,
    pub(super) options: NatsOptions,
    pub(super) hubs: Hubs,
    pub(super) link: Link,
    pub(super) names: Names,
    pub(super) handles: Handles,
    pub(super) cipher: Cipher,
    pub(super) arrivals: Arrivals,
    pub(super) fatal: Fatal,
    pub(super) lanes: Lanes,
    pub(super) floors: Floors,
    pub(super) feeds: Arc<Feeds>,
    pub(super) directory: Directory,
    pub(super) peers: Peers,
    pub(super) reads: Semaphore,
    /// Whose the messages of mailboxes are.
    pub(super) tallies: Tallies,
    /// What authors may store.
    pub(super) allowances: Allowances,
    pub(super) signals: Signals,
    /// The name of this node among the others.
    pub(super) node: String,
    /// The newest seqs that this node stored lately.
    pub(super) recent: Recent,
    /// The senders' ids of a store that was moved here.
    pub(super) moved: Option<MovedIds>,
    /// Ends the tasks.
    pub(super) stop: CancellationToken,
    pub(super) specs: Vec<StreamSpec>,
    /// Whether the servers send messages at a given time.
    pub(super) has_schedules: bool,
    pub(super) trouble: Mutex<Option<Trouble>>,
    /// Since when the server of this node is cut off from the others, if it is.
    pub(super) cut_off: Mutex<Option<CutOff>>,
    /// The streams of mailboxes, and then those of histories, as they were at the last check; and what epoch that makes.
    states: Mutex<(Epoch, Vec<StreamState>)>,
    /// The newest seq of each stream of messages that this node knows.
    newest: Vec<AtomicU64>,
}

/// Pause before the leader of a stream is asked again whether it knows no newer message.
const CONFIRM_PAUSE: Duration = Duration::from_secs(1);

/// What does not work, though there is a connection.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) reason: Arc<str>,
    /// From when on nothing is stored. A stream without an answer may only be between two leaders: appends wait until then.
    pub(super) refuses_from: Instant,
}

/// A server that does not reach the majority of the others.
#[derive(Debug, Clone)]
pub(super) struct CutOff {
    pub(super) since: Instant,
    /// The server that this node left for that, by its id.
    pub(super) left: Option<String>,
    /// How often it tried another one.
    pub(super) attempts: u32,
}

/// The epoch of streams with these states.
fn epoch_of(states: &[StreamState]) -> Epoch {
    let ids: Vec<&str> = states.iter().map(|state| state.id.as_str()).collect();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, ids.join(" ").as_bytes());
    let hex: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Epoch::new(&hex)
}

impl Core {
    pub(super) fn new(
        settings: Settings,
        options: NatsOptions,
        (hubs, feeds): (Hubs, Arc<Feeds>),
        prepared: Prepared,
        signals: Signals,
    ) -> Self {
        let Prepared { link, secret, shards, states, specs, moved, has_schedules } = prepared;
        let handles = Handles::new(&secret);
        let mut node = [0; 8];
        // Two nodes of the same name would not count each other's readers.
        _ = getrandom::fill(&mut node);
        let allowances = Allowances::new(settings.total_bytes, shards, parts(settings.total_bytes, shards));
        states.iter().enumerate().for_each(|(stream, state)| allowances.measured(stream, state.bytes));
        Self {
            names: Names::new(&options.prefix, shards, &secret),
            cipher: Cipher::new(&secret),
            directory: Directory::new(handles.clone()),
            handles,
            arrivals: Arrivals::new(),
            fatal: Fatal::default(),
            lanes: Lanes::default(),
            floors: Floors::default(),
            peers: Peers::default(),
            reads: Semaphore::new(READS),
            tallies: Tallies::new(settings.mailbox.messages),
            allowances,
            node: format!("{:016x}", u64::from_le_bytes(node)),
            stop: CancellationToken::new(),
            trouble: Mutex::default(),
            cut_off: Mutex::default(),
            newest: states.iter().map(|state| state.last.into()).collect(),
            states: Mutex::new((epoch_of(&states), states)),
            settings,
            options,
            hubs,
            feeds,
            link,
            signals,
            recent: Recent::default(),
            moved,
            specs,
            has_schedules,
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.settings.clock.now()
    }

    pub(super) fn place(&self, address: &Address) -> Place {
        self.names.place(address)
    }

    /// What does not work now.
    pub(super) fn failing(&self) -> Option<Arc<str>> {
        self.trouble_if(|_| true)
    }

    /// Why nothing can be stored now, or not soon.
    pub(super) fn refusing(&self) -> Option<Arc<str>> {
        self.trouble_if(|trouble| trouble.refuses_from <= Instant::now())
    }

    fn trouble_if(&self, counts: impl FnOnce(&Trouble) -> bool) -> Option<Arc<str>> {
        if !self.link.is_up() {
            return Some("there is no connection to NATS".into());
        }
        lock(&self.trouble)
            .as_ref()
            .filter(|trouble| counts(trouble))
            .map(|trouble| Arc::clone(&trouble.reason))
    }

    /// Notes a seq of this stream.
    pub(super) fn note_newest(&self, stream: usize, seq: u64) {
        if let Some(newest) = self.newest.get(stream) {
            newest.fetch_max(seq, Ordering::AcqRel);
        }
    }

    /// The newest seq of a stream that this node knows.
    pub(super) fn known_newest(&self, stream: usize) -> Seq {
        Seq(self.newest.get(stream).map_or(0, |newest| newest.load(Ordering::Acquire)))
    }

    /// The state of a stream, as its leader knows.
    ///
    /// # Errors
    /// The stream does not answer, or its leader is cut off from the others.
    async fn ask_state(&self, stream: usize) -> Result<StreamState, AskError> {
        let state = state(&info(&self.link, &self.names.stream(stream)).await?);
        self.note_newest(stream, state.last);
        if !state.has_majority {
            return Err(AskError::Unknown("the leader of the stream does not hear from the others".into()));
        }
        Ok(state)
    }

    /// The newest seq of a stream, as its leader knows.
    ///
    /// # Errors
    /// The stream does not answer, or its leader is cut off from the others.
    pub(super) async fn ask_newest(&self, stream: usize) -> Result<Seq, AskError> {
        self.ask_state(stream).await.map(|state| Seq(state.last))
    }

    /// The newest seq of a stream. A leader is believed that it is below `at_least` when it has said so for a while: one that has
    /// just been elected may not have applied yet what is stored, and one that has just been cut off does not know it.
    ///
    /// # Errors
    /// Those of [`Self::ask_newest`], and another leader has been elected meanwhile.
    pub(super) async fn confirm_newest(&self, stream: usize, at_least: Seq) -> Result<Seq, AskError> {
        let (began, mut leader) = (Instant::now(), None);
        loop {
            let state = self.ask_state(stream).await?;
            let is_confirmed = state.leader.is_none() || began.elapsed() > HEARD;
            if *leader.get_or_insert_with(|| state.leader.clone()) != state.leader {
                return Err(AskError::Unknown("the stream has just got another leader".into()));
            }
            if Seq(state.last) >= at_least || is_confirmed {
                return Ok(Seq(state.last));
            }
            sleep(CONFIRM_PAUSE).await;
        }
    }

    pub(super) fn epoch(&self) -> Epoch {
        lock(&self.states).0.clone()
    }

    pub(super) fn origin(&self, stream: usize) -> Seq {
        Seq(lock(&self.states).1.get(stream).map_or(0, |state| state.origin))
    }

    /// Notes the states of all streams. Answers whether the epoch is another one now.
    pub(super) fn note_states(&self, states: Vec<StreamState>) -> bool {
        let epoch = epoch_of(&states);
        states.iter().enumerate().for_each(|(stream, state)| self.allowances.measured(stream, state.bytes));
        let mut known = lock(&self.states);
        let is_another = known.0 != epoch;
        for (newest, state) in self.newest.iter().zip(&states) {
            match is_another {
                true => newest.store(state.last, Ordering::Release),
                false => _ = newest.fetch_max(state.last, Ordering::AcqRel),
            }
        }
        *known = (epoch, states);
        is_another
    }

    /// See [`crate::engine::Engine::contents`].
    pub(super) fn contents(&self) -> Contents {
        let Usage { messages: queued, bytes: queued_bytes } = self.lanes.load();
        let states = &lock(&self.states).1;
        let (mailboxes, histories) = states.split_at(states.len() / 2);
        let sum = |states: &[StreamState], of: fn(&StreamState) -> u64| {
            usize::try_from(states.iter().map(of).sum::<u64>()).unwrap_or(usize::MAX)
        };
        Contents {
            mailboxes: sum(mailboxes, |state| state.subjects),
            topics: sum(histories, |state| state.subjects),
            unread: sum(mailboxes, |state| state.messages),
            history: sum(histories, |state| state.messages),
            bytes: states.iter().map(|state| state.bytes).sum(),
            most_bytes: self.settings.total_bytes,
            oldest: Oldest::Unknown,
            queued,
            queued_bytes,
        }
    }

    /// The error of an append or a change that has no good answer.
    pub(super) fn unavailable(error: &AskError) -> EngineError {
        EngineError::Unavailable { reason: error.reason() }
    }

    /// Deletes what a mailbox holds up to `through`. Answers how many messages that were: those that another node has deleted are not
    /// among them.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn purge(&self, place: &Place, through: Seq) -> Result<u64, AskError> {
        let stream = self.names.stream(place.stream);
        // Servers before 2.15 take seq 1 for no seq, and would delete everything.
        let seq = through.0.saturating_add(1);
        if seq <= 1 {
            return Ok(0);
        }
        let request = json!({ "filter": place.stored, "seq": seq });
        self.link
            .api(&format!("STREAM.PURGE.{stream}"), &request)
            .await
            .map(|purged| purged["purged"].as_u64().unwrap_or_default())
    }

    /// How many messages an address holds, acknowledged ones among them.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn count(&self, place: &Place) -> Result<u64, AskError> {
        let stream = self.names.stream(place.stream);
        let request = json!({ "subjects_filter": place.stored });
        let info: Value = self.link.api(&format!("STREAM.INFO.{stream}"), &request).await?;
        Ok(info["state"]["subjects"][&place.stored].as_u64().unwrap_or_default())
    }
}
