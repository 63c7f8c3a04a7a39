//! What every transport works with: the broker, the checks and the limits.

use std::net::IpAddr;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, Sending};
use crate::budget::Budget;
use crate::config::Config;
use crate::edge::caller::Caller;
use crate::edge::refusal::Refusal;
use crate::identity::Identity;
use crate::limits::{ConnectionLimiter, ConnectionPermit, ProvedAddresses, Rates};
use crate::message::Seq;
use crate::protocol::{Close, Code, SERVER, SendRequest, ServerFrame, To};

/// What every transport works with. Shared by reference count: each socket holds a reference.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// The broker.
    pub broker: Broker,
    /// Checks tokens and API keys.
    pub identity: Identity,
    /// How much each sender may send.
    pub rates: Rates,
    /// How many connections each client address may have.
    pub connection_limiter: ConnectionLimiter,
    /// How much memory all clients together may take.
    pub budget: Budget,
    /// The addresses from which registered sessions of x0 pages poll.
    pub proved_addresses: ProvedAddresses,
    /// The settings.
    pub config: Config,
    /// Fires when the server stops. Polls are answered and sockets closed then.
    pub shutdown: CancellationToken,
    /// Upgraded sockets. A graceful stop waits for them as for HTTP connections.
    pub tasks: TaskTracker,
}

impl Gateway {
    /// The `welcome` frame of a caller. Its mailbox is acknowledged up to `seq`.
    #[must_use]
    pub(crate) fn welcome(&self, caller: &Caller, seq: Seq) -> String {
        let client = caller.grant.client();
        ServerFrame::Welcome {
            session: caller.grant.session(),
            user: client.and_then(|client| client.user.as_ref()),
            handle: client.map(|client| client.handle),
            epoch: &self.broker.epoch(),
            seq,
            durability: self.broker.durability(),
            heartbeat: self.config.heartbeat.as_secs(),
            max_payload: self.config.max_payload,
            server: SERVER,
        }
        .encode()
    }

    /// Sends a message of this caller, within its rate.
    ///
    /// # Errors
    /// `rate_limited`, and the errors of [`Broker::send`].
    pub(crate) async fn send(&self, caller: &Caller, send: SendRequest) -> Result<Sending, Refusal> {
        self.charge(caller, &send.to).map_err(|wait| self.too_fast(wait))?;
        Ok(self.broker.send(&caller.grant, send).await?)
    }

    /// Counts one message of this caller for each mailbox that it goes to.
    ///
    /// # Errors
    /// How long the caller has to wait.
    pub(crate) fn charge(&self, caller: &Caller, to: &To) -> Result<(), Duration> {
        let Some(key) = caller.rate_key().filter(|_| self.rates.rate() > 0) else { return Ok(()) };
        let mailboxes = match to {
            To::User(user) => self.broker.directory().known_sessions_of(user).len(),
            To::Session(_) | To::Topic(_) | To::Peer(_) => 1,
        };
        self.rates.charge(&key, mailboxes)
    }

    /// The refusal of a message above the rate. `wait` is how long the sender has to wait.
    #[must_use]
    pub(crate) fn too_fast(&self, wait: Duration) -> Refusal {
        let (rate, seconds) = (self.rates.rate(), wait.as_secs_f32());
        let text = format!(
            "more than {rate} messages in a second (see --send-rate); try again in {seconds:.1} s, with the same id"
        );
        Refusal::new(Code::RateLimited, text)
    }

    /// A permit for one connection from this client address.
    ///
    /// # Errors
    /// `rate_limited` if the address has as many connections as it may.
    pub(crate) fn connection_permit(&self, address: Option<IpAddr>) -> Result<ConnectionPermit, Refusal> {
        self.connection_limiter.try_acquire(address).ok_or_else(|| {
            let limit = self.connection_limiter.limit();
            let text = format!(
                "{limit} connections from this address already, the most allowed (see --connections-per-address); close \
                 some first"
            );
            Refusal::new(Code::RateLimited, text).closing(Close::Overloaded)
        })
    }
}
