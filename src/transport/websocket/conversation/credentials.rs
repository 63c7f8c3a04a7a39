//! Who speaks on a connection: `hello`, fresh tokens, and tokens that expire.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use crate::broker::BrokerError;
use crate::config::Auth;
use crate::directory::IdScope;
use crate::edge::{Caller, NamedSession, Refusal, SessionPolicy, Shown};
use crate::grant::{Client, Grant, Proof, SKEW, TokenExpiry};
use crate::hub::{EndReason, Transport};
use crate::message::{Seq, SessionId};
use crate::protocol::{Close, Code, Malformed, Resume, ServerFrame};
use crate::transport::reading::KEY_IS_GONE;
use crate::transport::websocket::conversation::identifying::Identifying;
use crate::transport::websocket::conversation::{Conversation, End};
use crate::transport::websocket::socket::Frame;

impl Conversation {
    /// Subscribes to the caller's mailbox, and welcomes it.
    pub(crate) async fn begin(&mut self, caller: Caller, resume: &Resume) -> ControlFlow<End> {
        let mut floor = Seq::START;
        if let Some(address) = caller.grant.mailbox() {
            match self.gateway.broker.mailbox(&address, resume, Transport::Websocket).await {
                Ok((mailbox, opening)) => {
                    self.mailbox = Some(mailbox);
                    floor = opening.seq;
                }
                Err(error) => return self.reject(error.into()),
            }
        }
        self.welcome(caller, floor);
        // The token of this caller has an expiry of its own.
        self.schedule_tick(Instant::now());
        ControlFlow::Continue(())
    }

    fn welcome(&mut self, caller: Caller, floor: Seq) {
        let welcome = self.gateway.welcome(&caller, floor);
        self.output.push(Frame::text(welcome));
        self.caller = Some(caller);
    }

    /// Acts on a `hello`: the first one identifies the caller, a later one brings a fresh token.
    pub(super) async fn on_hello(
        &mut self,
        session: Option<SessionId>,
        token: Option<String>,
        resume: Resume,
    ) -> ControlFlow<End> {
        let open = self.gateway.identity.auth() == Auth::Open;
        match &self.caller {
            None if open && session.is_none() && token.is_none() => {
                self.refuse(None, &Malformed::Missing("session").into());
            }
            None => return self.identify(session, token, SessionPolicy::Create, resume).await,
            Some(Caller { grant, .. }) if open || token.is_none() => {
                let who = grant.session().map_or("a backend", |session| session.as_str());
                let text = format!("this socket already speaks for `{who}`; open another one");
                self.refuse(None, &Refusal::new(Code::BadRequest, text));
            }
            Some(Caller { grant, .. }) => {
                let session = session.or_else(|| grant.session().cloned());
                return self.identify(session, token, SessionPolicy::Require, resume).await;
            }
        }
        ControlFlow::Continue(())
    }

    /// Finds out who the caller is. If that takes a while, an event says so.
    async fn identify(
        &mut self,
        session: Option<SessionId>,
        token: Option<String>,
        policy: SessionPolicy,
        resume: Resume,
    ) -> ControlFlow<End> {
        let (gateway, address) = (Arc::clone(&self.gateway), self.address);
        let mut identity = async move {
            let session = session.map(NamedSession::Hidden);
            gateway.identify(Shown { bearer: token.as_deref(), session, address }, policy).await
        }
        .boxed();
        match (&mut identity).now_or_never() {
            Some(result) => self.identified(result, &resume).await,
            None => {
                self.identifying = Some(Identifying::new(resume, identity));
                ControlFlow::Continue(())
            }
        }
    }

    /// Acts on what was found out about the caller.
    pub(super) async fn on_identified(&mut self, result: Result<Grant, Refusal>) -> ControlFlow<End> {
        match self.identifying.take() {
            Some(identifying) => self.identified(result, identifying.resume()).await,
            None => ControlFlow::Continue(()),
        }
    }

    async fn identified(&mut self, result: Result<Grant, Refusal>, resume: &Resume) -> ControlFlow<End> {
        match (result, &self.caller) {
            (Ok(grant), None) => {
                return self.begin(Caller { grant, address: self.address }, resume).await;
            }
            (Err(refusal), None) => return self.reject(refusal),
            (result, Some(Caller { grant, .. })) => match self.fresh(grant, result) {
                Ok(fresh) => self.renew(fresh).await,
                Err(refusal) => self.refuse(None, &refusal),
            },
        }
        // A fresh token expires at another time.
        self.timers.tick_now();
        ControlFlow::Continue(())
    }

    /// The caller with a fresh token. If that is refused, the token before stays valid.
    fn fresh(&self, grant: &Grant, fresh: Result<Grant, Refusal>) -> Result<Caller, Refusal> {
        match fresh? {
            fresh if same_holder(grant, &fresh) => Ok(Caller { grant: fresh, address: self.address }),
            _ => {
                let text = "this token is for another session, another user or another backend than this socket speaks for; open another one";
                Err(Refusal::new(Code::Forbidden, text))
            }
        }
    }

    /// Goes on with a fresh token, and with the topics that it allows.
    pub(super) async fn renew(&mut self, caller: Caller) {
        // A token that expired within the allowed skew is accepted. The client is not asked for another one.
        self.expiry_notified =
            token_expiry(&caller).is_some_and(|expiry| expiry.at <= self.gateway.broker.now());
        let floor = match caller.grant.mailbox() {
            Some(mailbox) => self.gateway.broker.floor(&mailbox).await,
            None => Seq::START,
        };
        let forbidden = self.topics.retain(|topic| caller.grant.may_read(topic).is_ok());
        let unseen = self.topics.retain_watched(|topic| caller.grant.may_see_members(topic).is_ok());
        let unseen = unseen.iter().filter_map(|topic| caller.grant.may_see_members(topic).err());
        let unseen: Vec<Refusal> = unseen.map(|denied| BrokerError::from(denied).into()).collect();
        self.welcome(caller, floor);
        for topic in &forbidden {
            self.answer(&ServerFrame::Unsubscribed { topic });
        }
        for refusal in &unseen {
            self.refuse(None, refusal);
        }
    }

    /// When its token needs attention, in Unix milliseconds. At its expiry the client is told; after the allowed skew
    /// the connection is closed.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        let expiry = token_expiry(self.caller.as_ref()?)?;
        Some(if self.expiry_notified { expiry.accepted_until() } else { expiry.at })
    }

    /// How long until [`Self::next_expiry`], or until the id of the session is no proof any more.
    pub(super) fn expires_in(&self) -> Option<Duration> {
        match self.caller.as_ref()?.grant.client()? {
            Client { proof: Proof::Token(_), .. } => {
                let left = self.next_expiry()?.saturating_sub(self.gateway.broker.now());
                Some(Duration::from_millis(left))
            }
            client => Some(self.gateway.known_proof_left(client)),
        }
    }

    /// Asks all nodes if this one does not know that the id of the session is still a proof.
    pub(super) async fn confirm_proof(&mut self) {
        let Some(Grant::Client(client)) = self.caller.as_ref().map(|caller| &caller.grant) else { return };
        if client.proof == Proof::SessionId && self.gateway.known_proof_left(client).is_zero() {
            let (gateway, client) = (Arc::clone(&self.gateway), Arc::clone(client));
            gateway.proof_left(&client).await;
        }
    }

    /// Checks that the caller's API key or token is still valid.
    pub(super) fn recheck_credentials(&mut self) -> ControlFlow<End> {
        match self.caller.as_ref().map(|caller| &caller.grant) {
            Some(Grant::Backend(backend)) if !self.gateway.identity.knows_backend(backend) => {
                ControlFlow::Break(End::Close(Close::Unauthorized, KEY_IS_GONE.to_owned()))
            }
            Some(Grant::Client(client)) if client.proof == Proof::SessionId => {
                match self.gateway.known_proof_left(client).is_zero() {
                    true => ControlFlow::Break(self.end_of_proof(client)),
                    false => ControlFlow::Continue(()),
                }
            }
            Some(Grant::Client(client)) => {
                // The registration may end before the token expires.
                self.gateway.prolong(client);
                self.check_expiry()
            }
            _ => ControlFlow::Continue(()),
        }
    }

    /// The end of a conversation whose session is not registered with `proof` for its user any more.
    fn end_of_proof(&self, client: &Client) -> End {
        let directory = self.gateway.broker.directory();
        match directory.id_left(&client.session, IdScope::Everywhere).is_zero() {
            true => {
                let text = "the session is not registered with `proof` any more".to_owned();
                End::Close(Close::SessionEnded, text)
            }
            false => End::of_session(EndReason::OwnerChanged),
        }
    }

    /// Tells the client that its token has expired, or ends the conversation if it was told before.
    fn check_expiry(&mut self) -> ControlFlow<End> {
        if self.next_expiry().is_none_or(|at| at > self.gateway.broker.now()) {
            return ControlFlow::Continue(());
        }
        if self.expiry_notified {
            return ControlFlow::Break(End::Close(Close::Unauthorized, "the token has expired".to_owned()));
        }
        self.expiry_notified = true;
        let text = format!(
            "the token has expired; send a fresh one within {SKEW} s: {{\"type\":\"hello\",\"token\":\"…\"}}"
        );
        self.refuse(None, &Refusal::new(Code::Unauthorized, text));
        ControlFlow::Continue(())
    }
}

/// When the token of a caller expires.
fn token_expiry(caller: &Caller) -> Option<TokenExpiry> {
    caller.grant.client()?.token_expiry()
}

/// Whether two grants are of the same mailbox and the same user.
fn same_holder(one: &Grant, other: &Grant) -> bool {
    let user = |grant: &Grant| grant.client().and_then(|client| client.user.clone());
    one.mailbox() == other.mailbox() && user(one) == user(other)
}
