//! Did the last answer arrive? The x0 client knows no acknowledgements: its next poll is taken as the
//! receipt, unless there is evidence that the answer before did not reach it.

use std::sync::Arc;

use crate::broker::Broker;
use crate::lease::{Claim, Idle, Leases};
use crate::link::Link;
use crate::message::{Seq, SessionId};

/// How often the same messages are handed out again for want of evidence.
pub(super) const MOST_REPEATS: u8 = 3;

/// What is remembered of an x0 page between its polls.
#[derive(Debug, Default)]
pub struct Reader {
    /// The last answer that carried messages, until its receipt is settled.
    answered: Option<Answered>,
    /// How often the messages of that answer were handed out without a receipt.
    repeats: u8,
}

/// The x0 pages that poll.
pub type Readers = Arc<Leases<Reader>>;

#[derive(Debug)]
struct Answered {
    /// Everything up to here was handed out.
    through: Seq,
    /// The connection it went out on.
    link: Arc<Link>,
    /// The `a__` of the poll it answered.
    request: Option<Box<str>>,
}

impl Answered {
    /// Whether a poll on `link` with this `a__` proves that the answer was read.
    fn arrived(&self, link: &Link, request: Option<&str>) -> bool {
        // A browser uses a connection again only after it has read the answer before.
        if self.link.id() == link.id() {
            return true;
        }
        // A browser sends the same request again only when it got no answer.
        let resent = request.is_some() && request == self.request.as_deref();
        !resent && self.link.arrived()
    }
}

impl Reader {
    /// How likely it is that a poll on `link` comes from this page; the highest wins.
    pub(super) fn likeness(idle: &Idle<Self>, link: &Link, request: Option<&str>) -> impl Ord + use<> {
        let answered = idle.state.answered.as_ref();
        let same_link = answered.is_some_and(|answered| answered.link.id() == link.id());
        let resent = answered.is_some_and(|a| request.is_some() && a.request.as_deref() == request);
        let arrived = answered.is_none_or(|answered| answered.link.arrived());
        (same_link || resent, arrived, idle.since())
    }

    /// Notes an answer that carries messages.
    pub(super) fn answered(&mut self, through: Seq, link: &Arc<Link>, request: Option<&str>) {
        link.watch();
        self.answered = Some(Answered { through, link: Arc::clone(link), request: request.map(Box::from) });
    }

    /// Takes a poll as the receipt of the answer before, or not.
    fn settle(&mut self, session: &SessionId, link: &Link, request: Option<&str>) -> Option<Seq> {
        let answered = self.answered.take()?;
        if answered.arrived(link, request) {
            self.repeats = 0;
            return Some(answered.through);
        }
        if self.repeats >= MOST_REPEATS {
            tracing::warn!(%session, through = %answered.through, "no receipt after {MOST_REPEATS} repeats; going on");
            self.repeats = 0;
            return Some(answered.through);
        }
        self.repeats += 1;
        tracing::debug!(%session, through = %answered.through, "no evidence of arrival; handing out again");
        None
    }
}

/// Settles the receipt of the answer before, and puts the subscriber where reading goes on.
pub(super) fn settle(
    claim: &mut Claim<Reader>,
    broker: &Broker,
    session: &SessionId,
    (link, request, ack): (&Link, Option<&str>, Option<Seq>),
) {
    let (subscriber, reader) = claim.parts();
    let evident = reader.settle(session, link, request);
    // A client that acknowledges is taken at its word, as far as the word can be true.
    let said = ack.filter(|ack| broker.is_ours(*ack, None));
    if said.is_some() {
        reader.repeats = 0;
    }
    if let Some(received) = said.or(evident) {
        subscriber.pass(received);
        if let Err(error) = broker.ack(session, received, None) {
            tracing::error!(%session, %error, "a receipt was refused");
        }
    }
    subscriber.seek(subscriber.passed());
}

/// Takes everything handed out to this session as received.
pub(super) fn received_all(readers: &Readers, broker: &Broker, session: &SessionId) {
    readers.each_idle(session, |idle| {
        let (subscriber, reader) = idle.parts();
        reader.repeats = 0;
        if let Some(answered) = reader.answered.take() {
            subscriber.pass(answered.through);
            if let Err(error) = broker.ack(session, answered.through, None) {
                tracing::error!(%session, %error, "a receipt was refused");
            }
        }
    });
}
