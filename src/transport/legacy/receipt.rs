//! Did the last answer arrive? The x0 client knows no acknowledgements: its next poll is taken as the
//! receipt, unless there is evidence that the answer before did not reach it.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::broker::{Broker, BrokerError};
use crate::hub::Transport;
use crate::link::Link;
use crate::message::{Seq, SessionId};
use crate::protocol::Resume;
use crate::sync::lock;
use crate::transport::lease::{Claim, IdleReader, Leases};

/// How long a message waits for another tab of its session to be polling again: two round trips (a preflight
/// and the poll) of a very slow network. A tab that was closed while it polled is not waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How often the same messages are handed out again for want of evidence.
const MOST_REPEATS: u8 = 3;

/// How long the evidence may take that is still on its way: a peer's TCP may acknowledge 40 ms late, and a
/// network takes its time.
const EVIDENCE: Duration = Duration::from_millis(240);

/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// How long, and for how many pages, an unsettled answer is remembered after its subscription has ended.
const REMEMBER: Duration = Duration::from_secs(600);
const MOST_REMEMBERED: usize = 16_384;

/// What is remembered of an x0 page between its polls.
#[derive(Debug, Default)]
pub(crate) struct LegacyReader {
    /// The last answer that carried messages, until its receipt is settled.
    answered: Option<Answered>,
    /// How often the messages of that answer were handed out without a receipt.
    repeats: u8,
}

#[derive(Debug)]
struct Answered {
    /// Everything up to here was handed out.
    through: Seq,
    /// The connection it went out on.
    link: Evidence,
    /// The `a__` of the poll it answered.
    request: Option<Box<str>>,
    /// Whether a live page would use the connection again: it is a browser's, and kept alive.
    reused: bool,
}

#[derive(Debug)]
enum Evidence {
    /// The connection can still be asked.
    Live(Arc<Link>),
    /// What it said when it was let go.
    Settled { id: u64, arrived: bool },
}

/// What a poll proves about the answer before.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    Arrived,
    Lost,
    /// Not acknowledged yet, on a connection that has not broken.
    Unknown,
}

impl Answered {
    fn is_on(&self, link: &Link) -> bool {
        link.id()
            == match &self.link {
                Evidence::Live(link) => link.id(),
                Evidence::Settled { id, .. } => *id,
            }
    }

    fn was_sent_again(&self, request: Option<&str>) -> bool {
        request.is_some() && request == self.request.as_deref()
    }

    /// What a poll proves.
    fn delivery(&self, Poll { link, request, in_turn, .. }: Poll<'_>) -> Delivery {
        // A browser uses a connection again only after it has read the answer before.
        if in_turn && self.is_on(link) {
            return Delivery::Arrived;
        }
        // A browser sends the same request again only when it got no answer.
        if self.was_sent_again(request) {
            return Delivery::Lost;
        }
        match &self.link {
            _ if self.is_lost() => Delivery::Lost,
            Evidence::Live(link) if !link.all_bytes_acked() => Delivery::Unknown,
            Evidence::Live(_) | Evidence::Settled { .. } => Delivery::Arrived,
        }
    }

    /// Whether the connection says that the answer did not reach its page.
    fn is_lost(&self) -> bool {
        match &self.link {
            // The browser's TCP may have taken an answer that its page did not live to see. A browser closes
            // such a connection; it keeps those of live pages, which poll again on them.
            Evidence::Live(link) => link.is_broken() || self.reused && link.peer_closed(),
            Evidence::Settled { arrived, .. } => !arrived,
        }
    }
}

impl LegacyReader {
    /// How likely it is that a poll on `link` comes from this page; the highest wins.
    ///
    /// Tabs of one browser share their connections, so a connection proves that an answer was read, not which
    /// tab asks. The reader that has seen least comes first: where this is wrong, it repeats and does not lose.
    fn match_score(at: Seq, idle: &IdleReader<Self>, link: &Link, request: Option<&str>) -> impl Ord + use<> {
        let answered = idle.state.answered.as_ref();
        let resent = answered.is_some_and(|answered| answered.was_sent_again(request));
        let lost = answered.is_some_and(Answered::is_lost);
        let seen = if lost { idle.subscriber().sent_through() } else { at };
        let same_link = answered.is_some_and(|answered| answered.is_on(link));
        (resent, !idle.is_gone(PATIENCE), Reverse(seen), same_link, Reverse(idle.since()))
    }

    /// Notes an answer that carries messages.
    pub(super) fn answered(&mut self, through: Seq, poll: Poll<'_>) {
        poll.link.watch();
        let (link, request) = (Evidence::Live(Arc::clone(poll.link)), poll.request.map(Box::from));
        self.answered = Some(Answered { through, link, request, reused: poll.reused });
    }

    /// Takes a poll as the receipt of the answer before, or not.
    async fn settle(&mut self, broker: &Broker, session: &SessionId, poll: Poll<'_>) -> Option<Seq> {
        let looking = Instant::now();
        let delivery = loop {
            match self.answered.as_ref()?.delivery(poll) {
                Delivery::Unknown if looking.elapsed() < EVIDENCE => sleep(LOOK).await,
                delivery => break delivery,
            }
        };
        let through = self.answered.take()?.through;
        if delivery != Delivery::Arrived {
            if self.repeats < MOST_REPEATS {
                self.repeats += 1;
                tracing::debug!(session = %broker.public_name(session), %through, "no evidence of arrival; handing out again");
                return None;
            }
            tracing::warn!(session = %broker.public_name(session), %through, "no receipt after {MOST_REPEATS} repeats; going on");
        }
        self.repeats = 0;
        Some(through)
    }
}

/// The x0 pages that poll.
#[derive(Debug, Default)]
pub(crate) struct LegacyReceipts {
    readers: Arc<Leases<LegacyReader>>,
    /// Protects the memory of answers whose subscription has ended; held for a look-up.
    ended: Mutex<Ended>,
}

#[derive(Debug, Default)]
struct Ended {
    readers: HashMap<SessionId, (Instant, LegacyReader)>,
    /// Oldest first; an entry may be out of date.
    order: VecDeque<(Instant, SessionId)>,
}

/// What a poll brings besides its session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Poll<'a> {
    pub(super) link: &'a Arc<Link>,
    /// The `a__` of its address.
    pub(super) request: Option<&'a str>,
    /// What it says it has received.
    pub(super) ack: Option<Seq>,
    /// Whether a live page would use its connection again.
    pub(super) reused: bool,
    /// Whether its connection carries one request after the other.
    pub(super) in_turn: bool,
}

impl LegacyReceipts {
    /// Finds the reader that polls, settles the receipt of its answer before, and puts its subscriber where
    /// reading goes on. `None` if too many polls of this session are waiting already.
    pub(super) async fn claim(
        &self,
        broker: &Broker,
        session: &SessionId,
        poll: Poll<'_>,
    ) -> Option<Claim<LegacyReader>> {
        let Poll { link, request, ack, .. } = poll;
        let claim = self.readers.claim(
            session,
            |position, idle| Some(LegacyReader::match_score(position, idle, link, request)),
            || async {
                let (subscriber, _) = broker.mailbox(session, &Resume::default(), Transport::Legacy).await?;
                let ended = lock(&self.ended).readers.remove(session);
                Ok::<_, BrokerError>((subscriber, ended.map(|(_, reader)| reader).unwrap_or_default()))
            },
        );
        let mut claim = claim.await.ok()?;
        let (subscriber, reader) = claim.parts();
        // A client that acknowledges is taken at its word, as far as the word can be true.
        let said = match ack {
            Some(ack) if broker.is_ours(session, ack, None).await => Some(ack),
            _ => None,
        };
        let received = match said {
            Some(_) => {
                *reader = LegacyReader::default();
                said
            }
            None => reader.settle(broker, session, poll).await,
        };
        if let Some(received) = received {
            subscriber.mark_sent(received);
            acknowledge(broker, session, received).await;
        }
        let from = subscriber.sent_through();
        subscriber.seek(from);
        claim.set_position(from);
        Some(claim)
    }

    /// Takes everything handed out to this session as received.
    pub(super) async fn received_all(&self, broker: &Broker, session: &SessionId) {
        let ended = lock(&self.ended).readers.remove(session).and_then(|(_, reader)| reader.answered);
        let mut through = ended.map(|answered| answered.through);
        self.readers.each_idle(session, |idle| {
            let (subscriber, reader) = idle.parts();
            reader.repeats = 0;
            if let Some(answered) = reader.answered.take() {
                subscriber.mark_sent(answered.through);
                through = through.max(Some(answered.through));
            }
        });
        if let Some(through) = through {
            acknowledge(broker, session, through).await;
        }
    }

    /// Ends the subscriptions of pages that did not come back, and forgets the oldest unsettled answers. Run it
    /// every second.
    pub(crate) fn sweep(&self) {
        let gone = self.readers.sweep();
        let now = Instant::now();
        let mut ended = lock(&self.ended);
        for (session, mut reader) in gone {
            let Some(answered) = &mut reader.answered else { continue };
            if let Evidence::Live(link) = &answered.link {
                // The connection's second handle is not kept for minutes.
                let (id, arrived) = (link.id(), !answered.is_lost() && link.all_bytes_acked());
                answered.link = Evidence::Settled { id, arrived };
            }
            let through = answered.through;
            let known = ended.readers.get(&session);
            let known = known.and_then(|(_, known)| Some(known.answered.as_ref()?.through));
            if known.is_none_or(|known| through < known) {
                ended.readers.insert(session.clone(), (now, reader));
                ended.order.push_back((now, session));
            }
        }
        while let Some((since, _)) = ended.order.front()
            && (*since + REMEMBER <= now || ended.order.len() > MOST_REMEMBERED)
        {
            let Some((since, session)) = ended.order.pop_front() else { break };
            if ended.readers.get(&session).is_some_and(|(at, _)| *at == since) {
                ended.readers.remove(&session);
            }
        }
    }
}

async fn acknowledge(broker: &Broker, session: &SessionId, received: Seq) {
    if let Err(error) = broker.ack(session, received, None).await {
        tracing::error!(session = %broker.public_name(session), %error, "a receipt was refused");
    }
}
