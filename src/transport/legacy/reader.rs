//! One x0 page between its polls.

use std::cmp::Reverse;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::message::Seq;
use crate::timer::LazyTimer;
use crate::transport::lease::IdleReader;
use crate::transport::legacy::evidence::{Delivery, UnconfirmedAnswer};
use crate::transport::legacy::source::RequestSource;

/// How long a message waits for another tab of its session to poll again: two round trips (a preflight and the poll) of
/// a very slow network. A tab that was closed during its poll is not waited for.
pub(super) const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the same messages are delivered again for want of evidence.
const MAX_REPEATS: u8 = 3;

/// How long the evidence may take: a peer's TCP may delay its acknowledgement by 40 ms, and the network has a delay.
pub(super) const EVIDENCE_TIMEOUT: Duration = Duration::from_millis(240);

/// How often the connection is asked meanwhile.
pub(super) const EVIDENCE_INTERVAL: Duration = Duration::from_millis(20);

/// The state of an x0 page between its polls.
#[derive(Debug, Default)]
pub(crate) struct LegacyReader {
    /// The last answer with messages, until it is confirmed.
    pub(super) unconfirmed: Option<UnconfirmedAnswer>,
    /// How often its messages were delivered again.
    repeats: u8,
    /// Wakes its poll at its deadline.
    pub(super) timer: LazyTimer,
}

/// What a poll says about the answer before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Receipt {
    /// There is no unconfirmed answer.
    None,
    /// Everything up to this seq counts as received.
    Received(Seq),
    /// The messages up to this seq are delivered again.
    Repeat(Seq),
    /// The messages up to this seq were repeated too often. They count as received.
    GivenUp(Seq),
}

impl LegacyReader {
    /// How likely it is that a poll comes from this page. The reader with the highest score is claimed.
    ///
    /// The tabs of one browser share their connections. So a connection proves that an answer was read, but not which
    /// tab polls. Among equals the reader with the lowest position wins: an error then repeats messages and loses none.
    pub(super) fn match_score(
        position: Seq,
        idle: &IdleReader<Self>,
        source: &RequestSource,
    ) -> impl Ord + use<> {
        let unconfirmed = idle.state().unconfirmed.as_ref();
        let repeated = unconfirmed.is_some_and(|answer| answer.is_repeated_by(source));
        let lost = unconfirmed.is_some_and(|answer| !answer.is_confirmed_by(source) && answer.is_lost());
        let received = if lost { idle.subscriber().sent_through() } else { position };
        let same_link = unconfirmed.is_some_and(|answer| answer.is_on(&source.link));
        (repeated, !idle.is_gone(PEER_TIMEOUT), Reverse(received), same_link, Reverse(idle.since()))
    }

    /// Notes an answer with messages, before it is written.
    pub(super) fn note_answer(&mut self, through: Seq, source: &RequestSource) {
        self.unconfirmed = Some(UnconfirmedAnswer::new(through, source));
    }

    /// Forgets the unconfirmed answer. Returns its last seq.
    pub(super) fn confirm(&mut self) -> Option<Seq> {
        self.repeats = 0;
        self.unconfirmed.take().map(|answer| answer.through)
    }

    /// Takes the next poll as the receipt of the answer before, unless there is evidence that it was lost. Waits for
    /// evidence that may still come.
    pub(super) async fn settle(&mut self, source: &RequestSource) -> Receipt {
        let asked = Instant::now();
        loop {
            let Some(answer) = &self.unconfirmed else { return Receipt::None };
            match answer.delivery(source) {
                Delivery::Unknown if asked.elapsed() < EVIDENCE_TIMEOUT => sleep(EVIDENCE_INTERVAL).await,
                Delivery::Arrived => return self.received(Receipt::Received),
                Delivery::Unknown | Delivery::Lost if self.repeats >= MAX_REPEATS => {
                    return self.received(Receipt::GivenUp);
                }
                Delivery::Unknown | Delivery::Lost => {
                    self.repeats += 1;
                    return self
                        .unconfirmed
                        .take()
                        .map_or(Receipt::None, |answer| Receipt::Repeat(answer.through));
                }
            }
        }
    }

    /// Takes what the connection says as the receipt of the last answer: no poll comes any more. `None` if evidence may still come.
    pub(super) fn settle_at_the_end(&mut self) -> Option<Receipt> {
        let Some(answer) = &self.unconfirmed else { return Some(Receipt::None) };
        match answer.delivery_so_far() {
            Delivery::Unknown => None,
            Delivery::Arrived => Some(self.received(Receipt::Received)),
            Delivery::Lost => Some(Receipt::Repeat(answer.through)),
        }
    }

    fn received(&mut self, receipt: impl Fn(Seq) -> Receipt) -> Receipt {
        self.confirm().map_or(Receipt::None, receipt)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::link::Link;

    fn source(link: &Arc<Link>, request_id: &str) -> RequestSource {
        RequestSource {
            address: None,
            link: Arc::clone(link),
            request_id: Some(request_id.to_owned()),
            reusable: false,
            sequential: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_without_an_answer_has_nothing_to_settle() {
        let mut reader = LegacyReader::default();
        assert_eq!(reader.settle(&source(&Link::new(), "1")).await, Receipt::None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_on_the_same_connection_is_the_receipt() {
        let (mut reader, link) = (LegacyReader::default(), Link::new());
        reader.note_answer(Seq(7), &source(&link, "1"));
        assert_eq!(reader.settle(&source(&link, "2")).await, Receipt::Received(Seq(7)));
        assert_eq!(reader.settle(&source(&link, "3")).await, Receipt::None);
    }

    #[tokio::test(start_paused = true)]
    async fn evidence_is_waited_for_and_then_the_messages_are_repeated() {
        let mut reader = LegacyReader::default();
        reader.note_answer(Seq(7), &source(&Link::new(), "1"));
        let asked = Instant::now();
        assert_eq!(reader.settle(&source(&Link::new(), "2")).await, Receipt::Repeat(Seq(7)));
        assert_eq!(asked.elapsed(), EVIDENCE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proven_loss_is_repeated_at_once() {
        let mut reader = LegacyReader::default();
        reader.note_answer(Seq(7), &source(&Link::new(), "1"));
        let asked = Instant::now();
        assert_eq!(reader.settle(&source(&Link::new(), "1")).await, Receipt::Repeat(Seq(7)));
        assert_eq!(asked.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn messages_are_repeated_three_times_and_then_count_as_received() {
        let mut reader = LegacyReader::default();
        let settle = async |reader: &mut LegacyReader, through| {
            reader.note_answer(Seq(through), &source(&Link::new(), "1"));
            reader.settle(&source(&Link::new(), "1")).await
        };
        for _ in 0..MAX_REPEATS {
            assert_eq!(settle(&mut reader, 7).await, Receipt::Repeat(Seq(7)));
        }
        assert_eq!(settle(&mut reader, 7).await, Receipt::GivenUp(Seq(7)));
        assert_eq!(settle(&mut reader, 8).await, Receipt::Repeat(Seq(8)), "the count begins again");
    }
}
