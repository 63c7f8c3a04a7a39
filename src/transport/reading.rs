//! What SSE and long-poll share: the cursor of a request, and how long its caller may read.

use std::time::{Duration, Instant};

use futures::future::pending;

use crate::broker::BrokerError;
use crate::edge::{Caller, Gateway, Refusal, acknowledgement_refused};
use crate::engine::EngineError;
use crate::grant::Grant;
use crate::log::Repeated;
use crate::message::{Address, Item, Seq};
use crate::protocol::{Code, Resume};
use crate::subscriber::Subscriber;

/// Why a backend reads no more.
pub(super) const KEY_IS_GONE: &str = "this API key is no longer known, or has another mailbox";

/// Checks that no page of another site caused a GET with this cursor, which acknowledges: it says whether it may.
///
/// # Errors
/// `forbidden` if one may have.
pub(super) fn check_cursor(resume: &Resume, may_acknowledge: impl FnOnce() -> bool) -> Result<(), Refusal> {
    let acknowledges = resume.after.is_some_and(|after| after > Seq::START);
    match acknowledges && !may_acknowledge() {
        true => Err(acknowledgement_refused()),
        false => Ok(()),
    }
}

/// Whether the cursor of a request belongs to this store. A foreign one acknowledges nothing.
///
/// # Errors
/// [`EngineError::Unavailable`]: nobody can tell now. Such a one acknowledges nothing either.
pub(super) async fn cursor_is_ours(
    gateway: &Gateway,
    mailbox: &Address,
    resume: &Resume,
) -> Result<bool, EngineError> {
    match resume.after {
        Some(cursor) => gateway.broker.is_ours(mailbox, cursor, resume.epoch.as_ref()).await,
        None => Ok(true),
    }
}

/// Acknowledges everything up to the cursor of a request, which belongs to this store.
///
/// # Errors
/// Those of [`crate::broker::Broker::acknowledge`].
pub(super) async fn acknowledge_cursor(
    gateway: &Gateway,
    mailbox: &Address,
    resume: &Resume,
) -> Result<(), Refusal> {
    match resume.after.filter(|cursor| *cursor > Seq::START) {
        Some(cursor) => Ok(gateway.broker.acknowledge(mailbox, cursor, resume.epoch.as_ref()).await?),
        None => Ok(()),
    }
}

/// How long the caller's proof is accepted from now on; without a limit for a caller whose proof does not expire. An API
/// key is accepted as long as it is known.
pub(super) async fn proof_left(gateway: &Gateway, caller: &Caller) -> Duration {
    match &caller.grant {
        Grant::Backend(backend) if !gateway.identity.knows_backend(backend) => Duration::ZERO,
        Grant::Client(client) => gateway.proof_left(client).await,
        _ => Duration::MAX,
    }
}

/// Checks that the caller's API key was not removed while it waited.
///
/// # Errors
/// `unauthorized` if it was.
pub(super) fn check_key(gateway: &Gateway, caller: &Caller) -> Result<(), Refusal> {
    match caller.grant.backend().is_none_or(|backend| gateway.identity.knows_backend(backend)) {
        true => Ok(()),
        false => Err(Refusal::new(Code::Unauthorized, KEY_IS_GONE)),
    }
}

/// The next item of a mailbox, or why it cannot be read now: that is told once. `None` when its session has ended. Without a
/// mailbox it waits for ever.
///
/// # Cancel safety
/// Nothing is lost when the future is dropped.
pub(super) async fn next_item(mailbox: Option<&mut Subscriber>) -> Option<Result<Item, EngineError>> {
    match mailbox {
        Some(mailbox) => mailbox.next_or_failure().await,
        None => pending().await,
    }
}

/// How often a connection is told that its messages cannot be read.
const FAILURE_INTERVAL: Duration = Duration::from_secs(10);

/// Tells a connection that stored messages cannot be read: once for its mailbox and all its topics, and again while it
/// goes on.
#[derive(Debug)]
pub(super) struct ReadFailures(Repeated);

impl Default for ReadFailures {
    fn default() -> Self {
        Self(Repeated::every(FAILURE_INTERVAL))
    }
}

impl ReadFailures {
    /// What the connection is told; `None` if it was told a moment ago.
    pub(super) fn note(&mut self, error: EngineError) -> Option<Refusal> {
        self.0.note(Instant::now())?;
        let refusal = Refusal::from(BrokerError::from(error));
        let text = format!(
            "{}; the connection stays, and the messages follow when they can be read",
            refusal.message
        );
        Some(Refusal { message: text, ..refusal })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::grant::{Backend, SKEW};
    use crate::message::Epoch;
    use crate::protocol::To;
    use crate::transport::testing::{gateway, open_caller, send, session, token_caller};

    #[tokio::test(start_paused = true)]
    async fn a_cursor_of_this_store_acknowledges() {
        let (gateway, a) = (gateway(&[]), session("A"));
        let seq = send(&gateway, To::Session(a.clone()), &json!(1), false).await;
        let mailbox = Address::from(&a);
        for (resume, ours) in [
            (Resume::default(), true),
            (Resume { after: Some(Seq::START), epoch: None }, true),
            (Resume { after: Some(seq), epoch: Some(Epoch::new("other")) }, false),
            (Resume { after: Some(Seq(seq.0 + 1)), epoch: None }, false),
        ] {
            assert_eq!(cursor_is_ours(&gateway, &mailbox, &resume).await, Ok(ours), "{resume:?}");
            let acknowledged = acknowledge_cursor(&gateway, &mailbox, &resume).await;
            assert_eq!(acknowledged.is_ok(), ours, "{resume:?}");
            assert!(gateway.broker.floor(&a).await < seq, "{resume:?}");
        }
        let resume = Resume { after: Some(seq), epoch: Some(gateway.broker.epoch()) };
        assert_eq!(cursor_is_ours(&gateway, &mailbox, &resume).await, Ok(true));
        acknowledge_cursor(&gateway, &mailbox, &resume).await.unwrap();
        assert_eq!(gateway.broker.floor(&a).await, seq);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_accepted_for_the_skew_after_its_expiry() {
        let gateway = gateway(&[]);
        let caller = token_caller(&gateway, "A", gateway.broker.now() + 5_000);
        assert_eq!(proof_left(&gateway, &caller).await, Duration::from_secs(5 + SKEW));
        tokio::time::advance(Duration::from_secs(6 + SKEW)).await;
        assert_eq!(proof_left(&gateway, &caller).await, Duration::ZERO);
        assert_eq!(proof_left(&gateway, &open_caller("A")).await, Duration::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_key_is_accepted_as_long_as_it_is_known() {
        let gateway = gateway(&[]);
        let backend = Backend {
            name: "shop".into(),
            from: None,
            send: None,
            topics: None,
            presence: None,
            sessions: true,
            ops: false,
            mailbox: None,
            key_digest: [0; 32],
        };
        let caller = Caller { grant: Grant::Backend(backend.into()), address: None };
        assert_eq!(proof_left(&gateway, &caller).await, Duration::ZERO);
    }
}
