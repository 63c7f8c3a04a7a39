//! Sends of the x0 client.

use futures::FutureExt;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::broker::Sending;
use crate::config::Auth;
use crate::directory::IdScope;
use crate::edge::{Caller, Refusal};
use crate::grant::Grant;
use crate::message::{Handle, MessageId, NameError, SessionId};
use crate::protocol::{Code, SendRequest, To};
use crate::transport::legacy::Legacy;
use crate::transport::legacy::answer::{Accepted, LegacyProgress, answer_to};
use crate::transport::legacy::payload::with_sender;
use crate::transport::legacy::source::RequestSource;

impl Legacy {
    /// Sends an object, for a request whose answer all pages may read.
    pub(super) async fn begin(
        &self,
        from: Option<SessionId>,
        to: SessionId,
        payload: &RawValue,
        source: &RequestSource,
    ) -> LegacyProgress {
        let mut accepted = match self.send(from, to, payload, source).await {
            Ok(sending) => Accepted::new(sending),
            Err(refusal) => return LegacyProgress::Answered(answer_to(Err(refusal)).open()),
        };
        match (&mut accepted).now_or_never() {
            Some(answer) => LegacyProgress::Answered(answer),
            None => LegacyProgress::Accepted(accepted),
        }
    }

    /// Sends an object. It has its place in the order when this returns.
    pub(super) async fn send(
        &self,
        from: Option<SessionId>,
        to: SessionId,
        payload: &RawValue,
        source: &RequestSource,
    ) -> Result<Sending, Refusal> {
        let caller = Caller { grant: self.sender(from).await?, address: source.address };
        let to = match caller.grant {
            Grant::Client(_) => To::Peer(to),
            Grant::Open { .. } | Grant::Backend(_) => To::Session(to),
        };
        let payload = RawValue::from_string(with_sender(payload.get(), caller.grant.from().as_ref()))
            .expect("an object with one member set is JSON");
        let id = source.request_id.as_deref().and_then(message_id);
        let send =
            SendRequest { id, to, payload, ttl: None, volatile: false, receipt: false, request: false };
        self.wait_for_rate(&caller, &send).await?;
        Ok(self.gateway.broker.send(&caller.grant, send).await?)
    }

    /// The grant of a sender. In `token` mode the id of a session that a backend has registered is its proof.
    async fn sender(&self, from: Option<SessionId>) -> Result<Grant, Refusal> {
        if self.gateway.identity.auth() == Auth::Open {
            if from.as_ref().is_some_and(|session| Handle::has_shape(session.as_str())) {
                let text = format!("the session of the sender {}", NameError::Handle);
                return Err(Refusal::new(Code::BadRequest, text));
            }
            return Ok(Grant::Open { session: from, manages: false });
        }
        let holder = match from {
            Some(session) => self.gateway.broker.directory().holder(&session, IdScope::X0).await,
            None => None,
        };
        let text = "the session of the sender is not registered; log in first";
        let holder = holder.ok_or_else(|| Refusal::new(Code::Unauthorized, text))?;
        Ok(Grant::Client(holder.into()))
    }

    /// Charges a send to its sender. A sender above its rate is held, at most for the time of a poll.
    async fn wait_for_rate(&self, caller: &Caller, send: &SendRequest) -> Result<(), Refusal> {
        let deadline = Instant::now() + self.gateway.config.poll_timeout;
        while let Err(too_fast) = self.gateway.charge(caller, send) {
            let until = Instant::now() + too_fast.wait;
            if until > deadline || self.gateway.shutdown.is_cancelled() {
                return Err(self.gateway.too_fast(too_fast));
            }
            self.hold(until).await;
        }
        Ok(())
    }
}

/// The message id of a request. A browser repeats a POST on a broken connection with the same `a__`. The prefix keeps
/// these ids apart from those of native senders.
fn message_id(request_id: &str) -> Option<MessageId> {
    MessageId::new(&format!("a__={request_id}")).ok()
}
