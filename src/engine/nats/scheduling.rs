//! Receipts for messages that expire in a mailbox that nobody reads.
//!
//! NATS sends itself a message at the time when one with a receipt expires. All nodes share one consumer of these: one node looks
//! whether the message is still there and not acknowledged, and stores the receipt. Servers have that since 2.12.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_nats::{HeaderMap, Message};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::clock::millis;
use crate::engine::Append;
use crate::engine::nats::envelope;
use crate::engine::nats::error::{AskError, NO_MESSAGE};
use crate::engine::nats::floors::Floor;
use crate::engine::nats::lanes::Outgoing;
use crate::engine::nats::link::{Stored, status};
use crate::engine::nats::names::{Names, Place};
use crate::engine::nats::node::Core;
use crate::message::{Address, Outcome, Seq};
use crate::metrics;

/// The consumer that all nodes share.
const CONSUMER: &str = "due";

/// How long a request for due messages waits at the servers, and how many it brings at most.
const WAIT: Duration = Duration::from_secs(30);
const BATCH: usize = 64;

/// A node that got a message has so long to handle it. Then another node gets it.
const HANDLED: Duration = Duration::from_secs(30);

/// Pause after a failure.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// How long NATS keeps a message that is due.
const KEPT: &str = "24h";

/// A message that expires.
#[derive(Debug, Serialize, Deserialize)]
struct Due {
    /// Its mailbox, with the kind before the name.
    to: String,
    seq: u64,
}

/// What makes NATS tell when a message expires. The same one again replaces it.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Schedule {
    /// That of the message with this seq, which expires at this time in Unix milliseconds. `None` for one of a topic.
    pub(super) fn new(names: &Names, address: &Address, seq: Seq, expires_at: u64) -> Option<Self> {
        let (to, place) = (envelope::mailbox_text(address)?, names.place(address));
        let mut headers = HeaderMap::new();
        let at = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(expires_at));
        headers.insert("Nats-Schedule", format!("@at {at}"));
        headers.insert("Nats-Schedule-Target", names.due(&place));
        headers.insert("Nats-Schedule-TTL", KEPT);
        let body = serde_json::to_vec(&Due { to, seq: seq.0 }).expect("strings and numbers always encode");
        Some(Self { subject: names.schedule(&place, seq), headers, body: body.into() })
    }
}

fn nanos(time: Duration) -> u64 {
    millis(time).saturating_mul(1_000_000)
}

impl Core {
    /// Has NATS tell when a message expires whose author gets a receipt. Of a retry, what was stored first expires: whoever stored
    /// that may have ended before this.
    pub(super) async fn schedule(&self, append: &Append, outgoing: &Outgoing, stored: Stored) {
        let seq = Seq(stored.seq);
        let scheduled = async {
            let expires_at = match stored.is_known {
                true => self.expiry_of(&outgoing.place, seq).await?,
                false => Some(outgoing.expires_at),
            };
            let schedule = expires_at.and_then(|at| Schedule::new(&self.names, &append.address, seq, at));
            let Some(Schedule { subject, headers, body }) = schedule else { return Ok(()) };
            self.link.store(&subject, headers, body).await.map(|_| ())
        };
        if let Err(error) = scheduled.await {
            tracing::warn!(reason = %error.reason(), "a receipt will be missing if nobody reads the message");
        }
    }

    /// When the message at this seq expires, in Unix milliseconds. `None` if it is gone.
    ///
    /// # Errors
    /// [`AskError`].
    async fn expiry_of(&self, place: &Place, seq: Seq) -> Result<Option<u64>, AskError> {
        let stored = self.stored_at(&self.names.stream(place.stream), place, seq).await?;
        Ok(stored.and_then(|stored| envelope::summary(&stored)).map(|found| found.expires_at))
    }

    /// Takes back what [`Self::schedule`] did: the receipt is stored.
    pub(super) fn unschedule(self: &Arc<Self>, place: &Place, seq: Seq) {
        if !self.has_schedules {
            return;
        }
        let (core, subject) = (Arc::clone(self), self.names.schedule(place, seq));
        tokio::spawn(async move {
            let request = json!({ "filter": subject });
            // If it is not taken back, it finds nothing to do.
            _ = core.link.api(&format!("STREAM.PURGE.{}", core.names.schedules()), &request).await;
        });
    }

    /// Whether [`Self::schedule`] has something to do: the author of the message gets a receipt, and NATS can tell when it expires.
    pub(super) fn schedules(&self, append: &Append) -> bool {
        let has_receiver = append.receipt && append.id.is_some() && append.author.mailbox().is_some();
        self.has_schedules && has_receiver
    }

    /// Handles what is due, until the node stops.
    pub(super) async fn run_due(self: Arc<Self>) {
        let stream = self.names.schedules();
        let config = json!({
            "stream_name": stream,
            "config": {
                "name": CONSUMER, "durable_name": CONSUMER, "filter_subject": self.names.all_due(),
                "deliver_policy": "all", "ack_policy": "explicit", "ack_wait": nanos(HANDLED),
                "max_ack_pending": 1_000, "num_replicas": self.options.replicas,
            },
        });
        loop {
            let made = self.link.api(&format!("CONSUMER.CREATE.{stream}.{CONSUMER}"), &config).await;
            let taken = match made {
                Ok(_) => self.take_due(&stream).await,
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                tracing::debug!(reason = %error.reason(), "receipts of expired messages come later");
                sleep(FAILURE_PAUSE).await;
            }
        }
    }

    /// Takes what is due until there is a failure.
    async fn take_due(self: &Arc<Self>, stream: &str) -> Result<(), AskError> {
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{CONSUMER}");
        let request: Bytes = json!({ "batch": BATCH, "expires": nanos(WAIT) }).to_string().into();
        // These answers have the subjects under which they are stored, not that of the request.
        let inbox = self.link.client().new_inbox();
        let mut messages = self.link.subscribe(inbox.clone()).await?;
        loop {
            let asked = self.link.client().publish_with_reply(next.clone(), inbox.clone(), request.clone());
            asked.await.map_err(|error| AskError::Unknown(error.to_string().into()))?;
            for _ in 0..BATCH {
                let message = timeout(WAIT + FAILURE_PAUSE, messages.next()).await;
                let Ok(Some(message)) = message else {
                    return Err(AskError::Unknown("NATS does not answer".into()));
                };
                match status(&message) {
                    0 => self.handle(&message).await?,
                    // Nothing is due.
                    404 | 408 => break,
                    _ => return Err(AskError::Unknown("the consumer has gone".into())),
                }
            }
        }
    }

    async fn handle(self: &Arc<Self>, message: &Message) -> Result<(), AskError> {
        let answer = match self.expire_due(&message.payload).await? {
            None => "+ACK".to_owned(),
            Some(later) => format!("-NAK {}", json!({ "delay": nanos(later) })),
        };
        if let Some(reply) = &message.reply {
            // Without this answer it comes again.
            _ = self.link.client().publish(reply.clone(), answer.into()).await;
        }
        Ok(())
    }

    /// Stores the receipt for a message that has expired. Answers after which time, if it has not yet by the clock of this node.
    async fn expire_due(self: &Arc<Self>, due: &[u8]) -> Result<Option<Duration>, AskError> {
        let Ok(Due { to, seq }) = serde_json::from_slice(due) else { return Ok(None) };
        let Some(address) = envelope::mailbox_of(&to) else { return Ok(None) };
        let (place, seq) = (self.place(&address), Seq(seq));
        let stream = self.names.stream(place.stream);
        let Some(stored) = self.stored_at(&stream, &place, seq).await? else { return Ok(None) };
        let Some(letter) = envelope::decode(&address, seq, &stored) else { return Ok(None) };
        if self.floor(&address, &place).await?.acknowledged() >= seq {
            return Ok(None);
        }
        let now = self.now();
        if letter.expires_at > now {
            return Ok(Some(Duration::from_millis(letter.expires_at - now)));
        }
        self.emit_receipt(&letter, (&stream, seq), Outcome::Expired).await?;
        // So that nobody makes it again.
        self.raise(&address, place.clone(), &Floor::expired(&[seq]));
        self.delete_expired(&stream, seq).await.map(|()| None)
    }

    /// What the leader of a stream has of an address at a seq.
    async fn stored_at(&self, stream: &str, place: &Place, seq: Seq) -> Result<Option<Vec<u8>>, AskError> {
        let found: Value =
            match self.link.api(&format!("STREAM.MSG.GET.{stream}"), &json!({ "seq": seq.0 })).await {
                Ok(found) => found,
                Err(error) if error.is(NO_MESSAGE) => return Ok(None),
                Err(error) => return Err(error),
            };
        let message = &found["message"];
        let is_of = message["subject"].as_str() == Some(place.stored.as_str());
        let data = message["data"].as_str().filter(|_| is_of);
        Ok(data.and_then(|data| STANDARD.decode(data).ok()))
    }

    /// Deletes a message that has expired.
    ///
    /// # Errors
    /// [`AskError::Unknown`].
    pub(super) async fn delete_expired(&self, stream: &str, seq: Seq) -> Result<(), AskError> {
        let request = json!({ "seq": seq.0, "no_erase": true });
        match self.link.api(&format!("STREAM.MSG.DELETE.{stream}"), &request).await {
            // NATS or another node was faster.
            Err(AskError::Refused { .. }) => Ok(()),
            deleted => deleted.map(|_| metrics::EXPIRED.count()),
        }
    }
}
