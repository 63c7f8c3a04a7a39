//! Receipts of the x0 client. It knows no acknowledgements: its next poll counts as the receipt of the answer before,
//! unless there is evidence that the answer did not arrive.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::broker::{Broker, BrokerError};
use crate::edge::Refusal;
use crate::hub::Transport;
use crate::message::{Seq, SessionId};
use crate::metrics;
use crate::protocol::Resume;
use crate::sync::lock;
use crate::timer::LazyTimer;
use crate::transport::lease::{Claim, Leases, no_reader};
use crate::transport::legacy::reader::{EVIDENCE_INTERVAL, EVIDENCE_TIMEOUT, LegacyReader, Receipt};
use crate::transport::legacy::source::RequestSource;

/// How long an unconfirmed answer is remembered after its lease has ended.
const REMEMBER: Duration = Duration::from_secs(600);

/// Most unconfirmed answers that are remembered.
const MAX_REMEMBERED: usize = 16_384;

/// The x0 pages that poll, and the answers that they have not confirmed.
#[derive(Debug, Default)]
pub(crate) struct LegacyReceipts {
    leases: Arc<Leases<LegacyReader>>,
    /// Protects the readers whose lease has ended; held for a look-up.
    remembered: Mutex<Remembered>,
}

/// Readers whose lease has ended with an unconfirmed answer: for each session the one with the lowest position.
#[derive(Debug, Default)]
struct Remembered {
    readers: HashMap<SessionId, (Instant, LegacyReader)>,
    /// Oldest first. Entries may be out of date.
    order: VecDeque<(Instant, SessionId)>,
}

impl Remembered {
    fn take(&mut self, session: &SessionId) -> Option<LegacyReader> {
        self.readers.remove(session).map(|(_, reader)| reader)
    }

    /// Remembers a reader if it has an unconfirmed answer, unless a reader with a lower position is known.
    fn insert(&mut self, now: Instant, session: SessionId, mut reader: LegacyReader) {
        let Some(answer) = &mut reader.unconfirmed else { return };
        answer.settle_link();
        let through = answer.through;
        reader.timer = LazyTimer::default();
        let known = self.readers.get(&session).and_then(|(_, known)| known.unconfirmed.as_ref());
        if known.is_none_or(|known| through < known.through) {
            self.readers.insert(session.clone(), (now, reader));
            self.order.push_back((now, session));
        }
    }

    /// Forgets the readers that are too old, and the oldest of too many.
    fn forget_old(&mut self, now: Instant) {
        while let Some((since, _)) = self.order.front()
            && (*since + REMEMBER <= now || self.order.len() > MAX_REMEMBERED)
        {
            let Some((since, session)) = self.order.pop_front() else { break };
            if self.readers.get(&session).is_some_and(|(at, _)| *at == since) {
                self.readers.remove(&session);
            }
        }
    }
}

impl LegacyReceipts {
    /// Claims the reader that polls, settles the receipt of its answer before, and moves its subscriber to where reading
    /// goes on.
    ///
    /// # Errors
    /// Too many polls of this session are waiting, or it has too many readers.
    pub(super) async fn claim(
        &self,
        broker: &Broker,
        session: &SessionId,
        source: &RequestSource,
        ack: Option<Seq>,
    ) -> Result<Claim<LegacyReader>, Refusal> {
        let new = || async {
            let (subscriber, _) = broker.mailbox(session, &Resume::default(), Transport::Legacy).await?;
            let remembered = lock(&self.remembered).take(session);
            Ok::<_, BrokerError>((subscriber, remembered.unwrap_or_default()))
        };
        let score = |position, idle: &_| Some(LegacyReader::match_score(position, idle, source));
        // A browser closes the connection of a page that goes. Over HTTP/2 it carries other requests too.
        let link = Some(&source.link).filter(|_| source.sequential);
        let mut claim = self.leases.claim(session, link, score, new).await.map_err(no_reader)?;
        let (subscriber, reader) = claim.parts();
        if let Some(received) = received(broker, session, reader, source, ack).await {
            subscriber.mark_sent(received);
            acknowledge(broker, session, received).await;
        }
        let from = subscriber.sent_through();
        subscriber.seek(from);
        claim.set_position(from);
        Ok(claim)
    }

    /// Acknowledges everything that this session was answered with.
    pub(super) async fn acknowledge_all(&self, broker: &Broker, session: &SessionId) {
        let remembered = lock(&self.remembered).take(session);
        let mut through = remembered.and_then(|mut reader| reader.confirm());
        self.leases.each_idle(session, |idle| {
            let (subscriber, reader) = idle.parts();
            if let Some(answered) = reader.confirm() {
                subscriber.mark_sent(answered);
                through = through.max(Some(answered));
            }
        });
        if let Some(through) = through {
            acknowledge(broker, session, through).await;
        }
    }

    /// Settles the receipts of all answers, for a stop: the next process knows nothing of them. Waits for evidence that may still come.
    pub(super) async fn settle_all(&self, broker: &Broker) {
        let asked = Instant::now();
        loop {
            let (mut is_settled, mut received) = (true, Vec::new());
            self.leases.each_idle_of_all(|session, idle| {
                let (subscriber, reader) = idle.parts();
                match reader.settle_at_the_end() {
                    Some(Receipt::Received(through)) => {
                        subscriber.mark_sent(through);
                        received.push((session.clone(), through));
                    }
                    Some(_) => {}
                    None => is_settled = false,
                }
            });
            for (session, (_, reader)) in &mut lock(&self.remembered).readers {
                if let Some(Receipt::Received(through)) = reader.settle_at_the_end() {
                    received.push((session.clone(), through));
                }
            }
            for (session, through) in received {
                acknowledge(broker, &session, through).await;
            }
            if is_settled || asked.elapsed() >= EVIDENCE_TIMEOUT {
                return;
            }
            sleep(EVIDENCE_INTERVAL).await;
        }
    }

    /// Ends the leases of pages that did not come back, and forgets the oldest unconfirmed answers. The server calls it
    /// every second.
    pub(crate) fn sweep(&self) {
        let ended = self.leases.sweep();
        let now = Instant::now();
        let mut remembered = lock(&self.remembered);
        for (session, reader) in ended {
            remembered.insert(now, session, reader);
        }
        remembered.forget_old(now);
    }
}

/// Up to where a page has received its mailbox, as its poll says.
async fn received(
    broker: &Broker,
    session: &SessionId,
    reader: &mut LegacyReader,
    source: &RequestSource,
    ack: Option<Seq>,
) -> Option<Seq> {
    // A client that acknowledges is believed, if the seq is one of this store.
    if let Some(ack) = ack
        && broker.is_ours(session, ack, None).await == Ok(true)
    {
        *reader = LegacyReader::default();
        return Some(ack);
    }
    match reader.settle(source).await {
        Receipt::None => None,
        Receipt::Received(through) => Some(through),
        Receipt::Repeat(through) => {
            metrics::redelivered(Transport::Legacy).count();
            let session = broker.public_name(session);
            tracing::debug!(%session, %through, "no evidence of arrival; delivering again");
            None
        }
        Receipt::GivenUp(through) => {
            let session = broker.public_name(session);
            tracing::warn!(%session, %through, "no receipt after all repeats; going on");
            Some(through)
        }
    }
}

async fn acknowledge(broker: &Broker, session: &SessionId, received: Seq) {
    if let Err(error) = broker.acknowledge(&session.into(), received, None).await {
        tracing::error!(session = %broker.public_name(session), %error, "a receipt was refused");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::edge::Gateway;
    use crate::link::Link;
    use crate::link::testing::tcp_pair;
    use crate::message::Item;
    use crate::protocol::To;
    use crate::transport::lease::GRACE;
    use crate::transport::testing::{gateway, send, session};

    /// A page of session A that polls on one connection after the other.
    struct X0Page {
        gateway: Arc<Gateway>,
        receipts: LegacyReceipts,
        request: u32,
        link: Arc<Link>,
    }

    impl X0Page {
        async fn with_messages(count: usize) -> Self {
            let gateway = gateway(&[]);
            for n in 0..count {
                send(&gateway, To::Session(session("A")), &json!({ "n": n }), false).await;
            }
            Self { gateway, receipts: LegacyReceipts::default(), request: 0, link: Link::new() }
        }

        fn source(&self) -> RequestSource {
            RequestSource {
                address: None,
                link: Arc::clone(&self.link),
                request_id: Some(self.request.to_string()),
                reusable: false,
                sequential: true,
            }
        }

        async fn claim(&mut self, ack: Option<Seq>) -> Claim<LegacyReader> {
            self.request += 1;
            self.repeat(ack).await
        }

        /// Claims with the request of before.
        async fn repeat(&self, ack: Option<Seq>) -> Claim<LegacyReader> {
            let (broker, source) = (&self.gateway.broker, self.source());
            self.receipts.claim(broker, &session("A"), &source, ack).await.unwrap()
        }

        /// Answers a poll with its next message, whose number is returned.
        async fn answer(&self, mut claim: Claim<LegacyReader>) -> u64 {
            let Some(Item::Message(message)) = claim.subscriber().next().await else { panic!("no message") };
            let (subscriber, reader) = claim.parts();
            let through = subscriber.delivered();
            reader.note_answer(through, &self.source());
            claim.set_position(through);
            claim.answered();
            serde_json::from_str::<serde_json::Value>(message.payload()).unwrap()["n"].as_u64().unwrap()
        }

        async fn poll(&mut self) -> u64 {
            let claim = self.claim(None).await;
            self.answer(claim).await
        }

        async fn floor(&self) -> Seq {
            self.gateway.broker.floor(&session("A")).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_poll_is_the_receipt() {
        let mut page = X0Page::with_messages(2).await;
        assert_eq!(page.poll().await, 0);
        let before = page.floor().await;
        assert_eq!(page.poll().await, 1);
        assert!(page.floor().await > before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_delivered_again() {
        let mut page = X0Page::with_messages(2).await;
        assert_eq!(page.poll().await, 0);
        page.link = Link::new();
        let repeated = page.repeat(None).await;
        assert_eq!(page.answer(repeated).await, 0);
        assert_eq!(page.poll().await, 1);
    }

    /// A page is loaded again, and polls before the server has seen the end of its connection.
    #[tokio::test]
    async fn the_reader_of_a_page_that_has_gone_is_waited_for() {
        let mut page = X0Page::with_messages(1).await;
        let (mut stream, link, mut browser) = tcp_pair().await;
        page.link = link;
        let claim = page.claim(None).await;
        assert_eq!(page.answer(claim).await, 0);
        stream.write_all(b"answer").await.unwrap();
        browser.read_exact(&mut [0; 6]).await.unwrap();
        let waiting = page.claim(None).await;
        drop(browser);
        while !page.link.peer_closed() {
            tokio::task::yield_now().await;
        }
        page.link = Link::new();
        let mut next = Box::pin(page.claim(None));
        assert!(futures::poll!(&mut next).is_pending());
        drop(waiting);
        drop(next.await);
        let mut readers = 0;
        page.receipts.leases.each_idle(&session("A"), |_| readers += 1);
        assert_eq!(readers, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_acknowledges_is_believed_as_far_as_it_can_be_true() {
        let mut page = X0Page::with_messages(3).await;
        let floor = page.floor().await;
        assert_eq!(page.poll().await, 0);
        page.link = Link::new();
        let far = page.claim(Some(Seq(u64::MAX >> 16))).await;
        assert_eq!(page.answer(far).await, 0, "a seq that was never given acknowledges nothing");
        let seq = page.claim(None).await.subscriber().sent_through();
        assert!(seq > floor);
        page.link = Link::new();
        let acked = page.claim(Some(seq)).await;
        assert_eq!(page.answer(acked).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delete_acknowledges_what_was_answered() {
        let mut page = X0Page::with_messages(2).await;
        assert_eq!(page.poll().await, 0);
        page.receipts.acknowledge_all(&page.gateway.broker, &session("A")).await;
        page.link = Link::new();
        assert_eq!(page.poll().await, 1);
        let before = page.floor().await;
        page.receipts.acknowledge_all(&page.gateway.broker, &session("B")).await;
        assert_eq!(page.floor().await, before);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unconfirmed_answer_is_remembered_after_the_lease() {
        let mut page = X0Page::with_messages(2).await;
        assert_eq!(page.poll().await, 0);
        tokio::time::advance(GRACE).await;
        page.receipts.sweep();
        assert_eq!(lock(&page.receipts.remembered).readers.len(), 1);
        assert_eq!(page.poll().await, 1, "the same connection proves that the answer arrived");
        assert!(lock(&page.receipts.remembered).readers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delete_acknowledges_what_is_remembered() {
        let mut page = X0Page::with_messages(1).await;
        let before = page.floor().await;
        page.poll().await;
        tokio::time::advance(GRACE).await;
        page.receipts.sweep();
        page.receipts.acknowledge_all(&page.gateway.broker, &session("A")).await;
        assert!(page.floor().await > before);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_forgotten_in_time() {
        let mut page = X0Page::with_messages(1).await;
        page.poll().await;
        tokio::time::advance(GRACE).await;
        page.receipts.sweep();
        tokio::time::advance(REMEMBER - Duration::from_millis(1)).await;
        page.receipts.sweep();
        assert_eq!(lock(&page.receipts.remembered).readers.len(), 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        page.receipts.sweep();
        let remembered = lock(&page.receipts.remembered);
        assert!(remembered.readers.is_empty() && remembered.order.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_with_the_lowest_position_is_remembered() {
        let page = X0Page::with_messages(0).await;
        let reader = |through| {
            let mut reader = LegacyReader::default();
            reader.note_answer(Seq(through), &page.source());
            reader
        };
        let mut remembered = Remembered::default();
        for through in [8, 7, 9] {
            remembered.insert(Instant::now(), session("A"), reader(through));
        }
        remembered.insert(Instant::now(), session("B"), LegacyReader::default());
        assert_eq!(remembered.take(&session("A")).unwrap().confirm(), Some(Seq(7)));
        assert!(remembered.take(&session("B")).is_none(), "there is nothing to confirm");
    }
}
