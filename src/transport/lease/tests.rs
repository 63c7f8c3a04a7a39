use std::convert::Infallible;

use futures::{FutureExt, pin_mut};
use serde_json::json;
use tokio::time::advance;

use super::*;
use crate::broker::BrokerError;
use crate::edge::Gateway;
use crate::hub::Transport;
use crate::protocol::{Resume, To};
use crate::transport::testing::{gateway, send, session};

/// How long an idle reader is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The leases of session A. The state of a reader is its number.
struct Readers {
    gateway: Arc<Gateway>,
    leases: Arc<Leases<u32>>,
}

impl Readers {
    fn with(flags: &[&str]) -> Self {
        Self { gateway: gateway(flags), leases: Arc::default() }
    }

    /// A new reader with this number, whatever readers are idle.
    async fn new_reader(&self, number: u32) -> Claim<u32> {
        self.claim(|_, _| None::<u32>, number).await.unwrap()
    }

    /// The idle reader with this number.
    async fn idle_reader(&self, number: u32) -> Claim<u32> {
        self.claim(|_, idle| (*idle.state() == number).then_some(0), u32::MAX).await.unwrap()
    }

    async fn claim<S: Ord>(
        &self,
        score: impl Fn(Seq, &IdleReader<u32>) -> Option<S>,
        number: u32,
    ) -> Result<Claim<u32>, ClaimError<BrokerError>> {
        let new = || async {
            let resume = Resume::default();
            let (subscriber, _) =
                self.gateway.broker.mailbox(&session("A"), &resume, Transport::Poll).await?;
            Ok((subscriber, number))
        };
        self.leases.claim(&session("A"), None, score, new).await
    }

    /// Ends the poll of a reader that was answered with `position`.
    fn answer(mut claim: Claim<u32>, position: Seq) {
        claim.set_position(position);
        claim.answered();
    }

    async fn send(&self, payload: u32, volatile: bool) -> Seq {
        send(&self.gateway, To::Session(session("A")), &json!(payload), volatile).await
    }

    fn idle(&self) -> Vec<u32> {
        let mut idle = Vec::new();
        self.leases.each_idle(&session("A"), |reader| idle.push(*reader.state()));
        idle.sort_unstable();
        idle
    }

    fn is_empty(&self) -> bool {
        lock(&self.leases.table).is_empty()
    }
}

fn number(claim: &mut Claim<u32>) -> u32 {
    *claim.parts().1
}

#[tokio::test(start_paused = true)]
async fn the_idle_reader_with_the_highest_score_is_claimed() {
    let readers = Readers::with(&[]);
    let claims = [readers.new_reader(1).await, readers.new_reader(3).await, readers.new_reader(2).await];
    drop(claims);
    let mut claim = readers.claim(|_, idle| Some(*idle.state()), 9).await.unwrap();
    assert_eq!(number(&mut claim), 3);
    let mut next = readers.claim(|_, idle| Some(*idle.state()), 9).await.unwrap();
    assert_eq!(number(&mut next), 2, "a reader in use is not claimed again");
}

#[tokio::test(start_paused = true)]
async fn without_a_score_a_new_reader_is_made() {
    let readers = Readers::with(&[]);
    drop(readers.new_reader(1).await);
    let mut claim = readers.claim(|_, idle| (*idle.state() == 7).then_some(0), 2).await.unwrap();
    assert_eq!(number(&mut claim), 2);
    assert_eq!(readers.idle(), [1]);
}

#[tokio::test(start_paused = true)]
async fn the_score_is_given_the_position_of_the_last_answer() {
    let readers = Readers::with(&[]);
    Readers::answer(readers.new_reader(1).await, Seq(8));
    Readers::answer(readers.new_reader(2).await, Seq(7));
    let mut lowest = readers.claim(|position, _| Some(std::cmp::Reverse(position)), 9).await.unwrap();
    assert_eq!(number(&mut lowest), 2);
}

#[tokio::test(start_paused = true)]
async fn an_idle_reader_keeps_its_place_in_the_mailbox() {
    let readers = Readers::with(&[]);
    Readers::answer(readers.new_reader(1).await, Seq::START);
    let seq = readers.send(1, false).await;
    readers.send(2, true).await;
    readers.gateway.broker.ack(&session("A"), seq, None).await.unwrap();
    let mut claim = readers.idle_reader(1).await;
    for _ in 0..2 {
        assert!(
            claim.subscriber().next().await.is_some(),
            "neither acknowledged by others nor volatile ones are lost"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_come_back_is_dropped_after_the_grace() {
    let readers = Readers::with(&[]);
    Readers::answer(readers.new_reader(1).await, Seq::START);
    advance(GRACE - Duration::from_millis(1)).await;
    assert!(readers.leases.sweep().is_empty());
    drop(readers.idle_reader(1).await);
    advance(Duration::from_millis(1)).await;
    assert!(readers.leases.sweep().is_empty(), "a claim begins the grace anew");
    advance(GRACE).await;
    assert_eq!(readers.leases.sweep(), [(session("A"), 1)]);
    assert!(readers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_reader_in_use_is_not_dropped() {
    let readers = Readers::with(&[]);
    drop(readers.new_reader(1).await);
    let _claim = readers.idle_reader(1).await;
    advance(GRACE * 2).await;
    assert!(readers.leases.sweep().is_empty());
    assert!(!readers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_dropped_without_an_answer_was_aborted() {
    let readers = Readers::with(&[]);
    drop(readers.new_reader(1).await);
    Readers::answer(readers.new_reader(2).await, Seq::START);
    let mut gone = Vec::new();
    readers.leases.each_idle(&session("A"), |idle| gone.push((*idle.state(), idle.is_gone(TIMEOUT))));
    assert_eq!(gone, [(1, true), (2, false)]);
    advance(TIMEOUT + Duration::from_millis(1)).await;
    readers.leases.each_idle(&session("A"), |idle| assert!(idle.is_gone(TIMEOUT)));
}

#[tokio::test(start_paused = true)]
async fn a_full_session_evicts_the_reader_that_is_idle_the_longest() {
    let readers = Readers::with(&["--connections-per-session", "2"]);
    drop(readers.new_reader(1).await);
    advance(Duration::from_secs(1)).await;
    drop(readers.new_reader(2).await);
    let mut third = readers.new_reader(3).await;
    assert_eq!((number(&mut third), readers.idle()), (3, vec![2]));
    let _fourth = readers.new_reader(4).await;
    let error = readers.claim(|_, _| None::<u32>, 5).await.unwrap_err();
    assert!(matches!(error, ClaimError::NoNewReader(BrokerError::TooManyReaders { limit: 2 })), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_leases_of_a_session_are_limited() {
    let readers = Readers::with(&["--connections-per-session", "1000"]);
    let mut claims = Vec::new();
    for number in 0..MAX_READERS {
        claims.push(readers.new_reader(u32::try_from(number).unwrap()).await);
    }
    let error = readers.claim(|_, _| None::<u32>, 99).await.unwrap_err();
    assert_eq!(error, ClaimError::TooManyPolls);
    claims.pop();
    assert_eq!(number(&mut readers.new_reader(99).await), 99);
    assert_eq!(readers.idle(), [99]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_cannot_be_made_leaves_nothing_behind() {
    let readers = Readers::with(&[]);
    let new = || async { Err::<(Subscriber, u32), _>(7) };
    let error = readers.leases.claim(&session("A"), None, |_, _| None::<u32>, new).await.unwrap_err();
    assert_eq!(error, ClaimError::NoNewReader(7));
    assert!(readers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_cancelled_leaves_nothing_behind() {
    let readers = Readers::with(&[]);
    let new = || std::future::pending::<Result<(Subscriber, u32), Infallible>>();
    assert!(readers.leases.claim(&session("A"), None, |_, _| None::<u32>, new).now_or_never().is_none());
    assert!(readers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_new_session_of_the_same_name_begins_without_the_old_readers() {
    let readers = Readers::with(&[]);
    drop(readers.new_reader(1).await);
    readers.gateway.broker.end(&session("A")).await.unwrap();
    let mut claim = readers.claim(|_, _| Some(0), 2).await.unwrap();
    assert_eq!((number(&mut claim), readers.idle()), (2, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_reader_alone_waits_for_nobody() {
    let readers = Readers::with(&[]);
    let claim = readers.new_reader(1).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    assert_eq!(claim.wait_for_peers(Seq(7), TIMEOUT, deadline).now_or_never(), Some(None));
}

#[tokio::test(start_paused = true)]
async fn an_idle_peer_is_waited_for_until_its_timeout_or_the_deadline() {
    let readers = Readers::with(&[]);
    let claim = readers.new_reader(1).await;
    Readers::answer(readers.new_reader(2).await, Seq::START);
    for (deadline, waited) in
        [(Duration::from_secs(60), TIMEOUT), (Duration::from_secs(3), Duration::from_secs(3))]
    {
        Readers::answer(readers.idle_reader(2).await, Seq::START);
        let begun = Instant::now();
        assert_eq!(claim.wait_for_peers(Seq(7), TIMEOUT, begun + deadline).await, None);
        assert_eq!(begun.elapsed(), waited);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_aborted_its_poll_is_not_waited_for() {
    let readers = Readers::with(&[]);
    let claim = readers.new_reader(1).await;
    drop(readers.new_reader(2).await);
    let deadline = Instant::now() + Duration::from_secs(10);
    assert_eq!(claim.wait_for_peers(Seq(7), TIMEOUT, deadline).now_or_never(), Some(None));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_polls_again_ends_the_wait() {
    let readers = Readers::with(&[]);
    let claim = readers.new_reader(1).await;
    Readers::answer(readers.new_reader(2).await, Seq::START);
    let waiting = claim.wait_for_peers(Seq(7), TIMEOUT, Instant::now() + Duration::from_secs(10));
    pin_mut!(waiting);
    assert!((&mut waiting).now_or_never().is_none());
    let _peer = readers.idle_reader(2).await;
    assert_eq!(waiting.now_or_never(), Some(None));
}

#[tokio::test(start_paused = true)]
async fn an_answer_ends_where_the_nearest_peer_is() {
    let readers = Readers::with(&[]);
    let claim = readers.new_reader(1).await;
    Readers::answer(readers.new_reader(2).await, Seq(9));
    Readers::answer(readers.new_reader(3).await, Seq(8));
    let deadline = Instant::now() + Duration::from_secs(10);
    assert_eq!(claim.wait_for_peers(Seq(7), TIMEOUT, deadline).now_or_never(), Some(Some(Seq(8))));
    assert_eq!(claim.wait_for_peers(Seq(9), TIMEOUT, Instant::now()).await, Some(Seq(9)));
}

#[tokio::test(start_paused = true)]
async fn a_peer_in_a_poll_that_is_behind_is_waited_for() {
    let readers = Readers::with(&[]);
    let claim = readers.new_reader(1).await;
    claim.set_position(Seq(5));
    let behind = readers.new_reader(2).await;
    let waiting = claim.wait_for_peers(Seq(7), TIMEOUT, Instant::now() + Duration::from_secs(10));
    pin_mut!(waiting);
    assert!((&mut waiting).now_or_never().is_none());
    behind.set_position(Seq(5));
    assert_eq!(waiting.now_or_never(), Some(None), "both can be answered with the same message");
}
