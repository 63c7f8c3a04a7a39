//! Goes through a store, and says what becomes of each message.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::millis;
use crate::engine::embedded::OpenError;
use crate::engine::embedded::export::{Export, StoredId, StoredMessage};
use crate::engine::nats::envelope::{self, ReceiptFor};
use crate::engine::nats::migration::copying::Outgoing;
use crate::engine::nats::names::Names;
use crate::engine::nats::scheduling::Schedule;
use crate::engine::nats::streams::DAY;
use crate::engine::{Registration, Settings};
use crate::message::{Address, Message, Outcome, Seq, SessionId};

/// A store, and what is known of it before its messages.
#[derive(Debug)]
pub(super) struct Walk {
    export: Export,
    names: Names,
    settings: Settings,
    /// When the move began, in Unix milliseconds.
    began: u64,
    histories: HashMap<Address, usize>,
    pub(super) floors: HashMap<Address, Seq>,
    pub(super) registrations: Vec<(SessionId, Registration)>,
    since: HashMap<SessionId, Seq>,
    pub(super) ids: Vec<StoredId>,
}

/// A message that is moved.
#[derive(Debug)]
pub(super) struct Moved<'a> {
    /// The number of the stream it goes to.
    pub(super) stream: usize,
    pub(super) address: &'a Address,
    /// Its seq in the store, and that of the one before it. `None` for a receipt that is made now.
    pub(super) before: Option<(Seq, Seq)>,
    /// Bytes of its payload.
    pub(super) payload: usize,
    /// How long it is kept.
    pub(super) age: Duration,
    /// Whether its sender gets a receipt.
    pub(super) has_receipt: bool,
    pub(super) item: Outgoing,
}

/// What is not moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Messages whose time was over.
    pub(super) expired: u64,
    /// Messages that were acknowledged, and not deleted yet.
    pub(super) acknowledged: u64,
    /// The oldest messages of topics that hold more than streams keep.
    pub(super) beyond: u64,
    /// Receipts that were made for them.
    pub(super) receipts: u64,
}

impl Walk {
    /// Reads what is not messages.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn new(
        export: Export,
        names: Names,
        settings: Settings,
        began: u64,
    ) -> Result<Self, OpenError> {
        let registrations = export.registrations(began)?;
        let since = registrations.iter().filter(|(_, known)| known.since > Seq::START);
        let since = since.map(|(session, known)| (session.clone(), known.since)).collect();
        let (histories, floors, ids) = (export.histories(began)?, export.floors()?, export.ids(began)?);
        Ok(Self { export, names, settings, began, histories, floors, registrations, since, ids })
    }

    /// How many messages the store holds.
    pub(super) fn messages(&self) -> u64 {
        self.export.messages()
    }

    /// Hands out what is moved, in the order in which it is stored, until `each` answers false.
    ///
    /// # Errors
    /// The store is damaged, or cannot be read now.
    pub(super) fn run(&self, mut each: impl FnMut(Moved<'_>) -> bool) -> Result<Left, OpenError> {
        let (mut left, mut receipts, mut is_stopped) = (Left::default(), Vec::new(), false);
        let mut histories = self.histories.clone();
        self.export.each_message(self.began, |mut stored| {
            // An earlier owner of the session that sent it gets no receipt.
            stored.receipt = stored.receipt.filter(|(mailbox, _)| stored.seq > self.since(mailbox));
            let StoredMessage { seq, address, expires_at, .. } = &stored;
            let (seq, since) = (*seq, self.since(address));
            let floor = self.floors.get(address).copied().unwrap_or_default().max(since);
            if seq <= floor && address.is_mailbox() {
                left.acknowledged += 1;
                let outcome = if seq <= since { Outcome::Expired } else { Outcome::Acknowledged };
                receipts.extend(stored.receipt.map(|receipt| (receipt, outcome)));
                return true;
            }
            if *expires_at <= self.began {
                left.expired += 1;
                receipts.extend(stored.receipt.map(|receipt| (receipt, Outcome::Expired)));
                return true;
            }
            if let Some(count) = histories.get_mut(address)
                && *count > self.settings.history.messages
            {
                *count -= 1;
                left.beyond += 1;
                return true;
            }
            is_stopped = !each(self.moved(&stored));
            !is_stopped
        })?;
        for ((mailbox, id), outcome) in receipts.iter().filter(|_| !is_stopped) {
            let message = Message::receipt(id, *outcome, self.began);
            let expires_at = self.began.saturating_add(millis(self.settings.mailbox.age));
            left.receipts += 1;
            if !each(self.outgoing(mailbox, &message, (expires_at, None), None)) {
                break;
            }
        }
        Ok(left)
    }

    /// What tells when a message expires that gets this seq, if its sender gets a receipt.
    pub(super) fn schedule(&self, moved: &Moved<'_>, seq: Seq) -> Option<Schedule> {
        let expires_at = self.began.saturating_add(millis(moved.age));
        moved.has_receipt.then(|| Schedule::new(&self.names, moved.address, seq, expires_at)).flatten()
    }

    /// Since when a mailbox has its owner.
    fn since(&self, address: &Address) -> Seq {
        address.session().and_then(|session| self.since.get(session)).copied().unwrap_or_default()
    }

    fn moved<'a>(&self, stored: &'a StoredMessage) -> Moved<'a> {
        let before = Some((stored.seq, stored.prev));
        let times = (stored.expires_at, before);
        self.outgoing(&stored.address, &stored.message, times, stored.receipt.as_ref())
    }

    fn outgoing<'a>(
        &self,
        address: &'a Address,
        message: &Message,
        (expires_at, before): (u64, Option<(Seq, Seq)>),
        receipt: Option<&ReceiptFor>,
    ) -> Moved<'a> {
        let place = self.names.place(address);
        let age = Duration::from_millis(expires_at.saturating_sub(self.began));
        let body = envelope::encode_moved(message, expires_at, receipt);
        let item = Outgoing { subject: place.stored, lasts: Some(age.saturating_add(DAY)), body };
        let (stream, payload) = (place.stream, message.payload.get().len());
        Moved { stream, address, before, payload, age, has_receipt: receipt.is_some(), item }
    }
}
