//! What every transport works with: the broker, the checks and the limits.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::Guard;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, BrokerError, Sending};
use crate::budget::{Budget, Holder};
use crate::config::{Access, Config};
use crate::directory::KnownMailboxes;
use crate::edge::caller::Caller;
use crate::edge::refusal::Refusal;
use crate::engine::size_text;
use crate::grant::Grant;
use crate::identity::Identity;
use crate::limits::{
    ConnectionLimiter, ConnectionPermit, FailedProofs, ProvedAddresses, Rated, Rates, TooFast,
};
use crate::message::{Address, Seq};
use crate::metrics::{self, Limit};
use crate::protocol::{Close, Code, SERVER, SendRequest, ServerFrame, To};
use crate::reloadable::Reloadable;

/// What every transport works with. Shared by reference count: each socket holds a reference.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// The broker.
    pub broker: Broker,
    /// Checks tokens and API keys.
    pub identity: Arc<Identity>,
    /// How much each sender may send.
    pub rates: Arc<Rates>,
    /// How many connections each client address may have.
    pub connection_limiter: ConnectionLimiter,
    /// How much memory all clients together may take.
    pub budget: Budget,
    /// The addresses from which registered sessions of x0 pages poll.
    pub proved_addresses: ProvedAddresses,
    /// How many wrong proofs each client address has shown.
    pub failed_proofs: FailedProofs,
    /// The settings.
    pub config: Arc<Config>,
    /// The settings of access in force: a reload changes them. Those in `config` are of the start.
    pub access: Reloadable<Access>,
    /// Fires when the server stops. Polls are answered and sockets closed then.
    pub shutdown: CancellationToken,
    /// The connections of clients.
    pub connections: TaskTracker,
    /// Upgraded sockets. A graceful stop waits for them as for HTTP connections.
    pub tasks: TaskTracker,
}

impl Gateway {
    /// The settings of access in force. Not across an await.
    #[must_use]
    pub(crate) fn access(&self) -> Guard<Arc<Access>> {
        self.access.get()
    }

    /// Whether there is no room for a large message in the memory budget.
    #[must_use]
    pub(crate) fn budget_is_spent(&self) -> bool {
        !self.budget.has_room(Holder::Proved, self.config.max_payload)
    }

    /// The `welcome` frame of a caller. Its mailbox is acknowledged up to `seq`.
    #[must_use]
    pub(crate) fn welcome(&self, caller: &Caller, seq: Seq) -> String {
        let client = caller.grant.client();
        ServerFrame::Welcome {
            session: caller.grant.session(),
            backend: caller.grant.backend().and_then(|backend| backend.mailbox.as_ref()),
            user: client.and_then(|client| client.user.as_ref()),
            handle: client.map(|client| client.handle),
            epoch: &self.broker.epoch(),
            seq,
            durability: self.broker.durability(),
            heartbeat: self.config.heartbeat.as_secs(),
            max_payload: self.config.max_payload,
            dedup_window: self.config.dedup_window().as_secs(),
            server: SERVER,
            node: self.broker.node(),
        }
        .encode()
    }

    /// Sends a message of this caller, within its rate.
    ///
    /// # Errors
    /// `rate_limited`, `not_found` for a backend without a mailbox, and the errors of [`Broker::send`].
    pub(crate) async fn send(&self, caller: &Caller, send: SendRequest) -> Result<Sending, Refusal> {
        let known = self.charge(caller, &send);
        let known = known.map_err(|too_fast| self.too_fast(too_fast).of_client(caller.address))?;
        Ok(match &send.to {
            To::Reply(reply_to) => {
                let asked = self.broker.asked(&caller.grant, &send, reply_to)?;
                if matches!(asked.requester(), Address::Backend(name) if !self.identity.has_mailbox(name)) {
                    return Err(BrokerError::RequesterGone.into());
                }
                self.broker.reply(&caller.grant, asked, send).await?
            }
            to => {
                self.check_backend(&caller.grant, to)?;
                self.broker.send_to(&caller.grant, send, known).await?
            }
        })
    }

    /// Checks that a backend that is sent to has a mailbox. Who may not send to it does not learn that.
    fn check_backend(&self, grant: &Grant, to: &To) -> Result<(), BrokerError> {
        let To::Backend(name) = to else { return Ok(()) };
        grant.may_send(to)?;
        match self.identity.has_mailbox(name) {
            true => Ok(()),
            false => Err(BrokerError::NoSuchBackend(name.clone())),
        }
    }

    /// Counts one message of this caller, and its bytes, for each mailbox that it goes to. Returns which these are, if it had to
    /// know.
    ///
    /// # Errors
    /// How long the caller has to wait.
    pub(crate) fn charge(&self, caller: &Caller, send: &SendRequest) -> Result<KnownMailboxes, TooFast> {
        let Some(key) = caller.rate_key().filter(|_| self.rates.are_limited()) else {
            return Ok(KnownMailboxes::default());
        };
        let known = self.broker.directory().known_mailboxes(&caller.grant, &send.to);
        self.rates.charge(&key, known.count, send.payload.get().len())?;
        Ok(known)
    }

    /// The refusal of a message above the rate.
    #[must_use]
    pub(crate) fn too_fast(&self, too_fast: TooFast) -> Refusal {
        let seconds = too_fast.wait.as_secs_f32();
        let access = self.access();
        let above = match too_fast.of {
            Rated::Messages => {
                metrics::limited(Limit::SendRate).count();
                format!(
                    "{} messages in a second (see --send-rate)",
                    access.rate().map_or(0, |(rate, _)| rate)
                )
            }
            Rated::Bytes => {
                metrics::limited(Limit::SendBytesRate).count();
                let rate = size_text(access.bytes_rate().unwrap_or_default());
                format!("{rate} in a second, counted for each mailbox (see --send-bytes-rate)")
            }
        };
        let text = format!("more than {above}; try again in {seconds:.1} s, with the same id");
        Refusal::new(Code::RateLimited, text)
    }

    /// A permit for one connection from this client address.
    ///
    /// # Errors
    /// `rate_limited` if the address has as many connections as it may.
    pub(crate) fn connection_permit(&self, address: Option<IpAddr>) -> Result<ConnectionPermit, Refusal> {
        self.connection_limiter.try_acquire(address).ok_or_else(|| {
            metrics::limited(Limit::ConnectionsOfAddress).count();
            let limit = self.connection_limiter.limit();
            let text = format!(
                "{limit} connections from this address already, the most allowed (see --connections-per-address); close \
                 some first"
            );
            Refusal::new(Code::RateLimited, text).closing(Close::Overloaded).of_client(address)
        })
    }
}
