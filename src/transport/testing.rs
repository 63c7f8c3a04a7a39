//! What the unit tests of transports share: a gateway on a store in memory, on tokio's clock.

use std::sync::Arc;

use clap::Parser;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::config::Config;
use crate::edge::{Caller, Gateway};
use crate::engine::Embedded;
use crate::grant::{Client, Grant, Proof, TokenExpiry};
use crate::hub::Hubs;
use crate::identity::Identity;
use crate::limits::{ConnectionLimiter, FailedProofs, ProvedAddresses, Rates};
use crate::message::{Seq, SessionId, TopicName, UserId};
use crate::protocol::{SendRequest, To};
use crate::reloadable::Reloadable;
use crate::server::{broker_limits, engine_settings, storage};

#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

/// A gateway with these flags, in `open` mode unless they say otherwise.
pub(crate) fn gateway(flags: &[&str]) -> Arc<Gateway> {
    let always = ["test", "--durability", "memory"];
    let Flags { config } = Flags::parse_from(always.iter().chain(flags));
    let settings = engine_settings(&config, Clock::follow_tokio());
    let budget = Budget::new(config.memory_budget.unwrap_or(Budget::MOST));
    let hubs = Hubs::new(config.hub_slots).within(budget.clone());
    let engine = Embedded::start(settings, hubs.clone(), &storage(&config)).unwrap();
    Arc::new(Gateway {
        broker: Broker::new(engine.into(), hubs, broker_limits(&config), settings.clock),
        identity: Identity::new(&config.access).unwrap().into(),
        rates: Rates::new(config.access.rate(), config.access.bytes_rate()).into(),
        access: Reloadable::new(config.access.clone()),
        connection_limiter: ConnectionLimiter::new(config.access.max_connections_per_address()),
        budget,
        proved_addresses: ProvedAddresses::default(),
        failed_proofs: FailedProofs::default(),
        config: config.into(),
        shutdown: CancellationToken::new(),
        connections: TaskTracker::new(),
        tasks: TaskTracker::new(),
    })
}

/// A session id.
pub(crate) fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

/// A topic.
pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

/// The holder of a session in `open` mode.
pub(crate) fn open_caller(name: &str) -> Caller {
    Caller { grant: Grant::Open { session: Some(session(name)), manages: false }, address: None }
}

/// The holder of a session of user `u`, with a token that expires at this time, in Unix milliseconds.
pub(crate) fn token_caller(gateway: &Gateway, name: &str, expires: u64) -> Caller {
    let (session, user) = (session(name), UserId::new("u").unwrap());
    let (handle, proof) = (gateway.broker.handle(&session), Proof::Token(TokenExpiry { at: expires }));
    Caller { grant: Grant::Client(Client::new(session, handle, Some(user), proof).into()), address: None }
}

/// Sends a message from session `sender`, and waits until it is stored. Returns its seq; 0 for a volatile one.
pub(crate) async fn send(gateway: &Gateway, to: To, payload: &Value, volatile: bool) -> Seq {
    let payload = RawValue::from_string(payload.to_string()).unwrap();
    let send = SendRequest { id: None, to, payload, ttl: None, volatile, receipt: false, request: false };
    let grant = Grant::Open { session: Some(session("sender")), manages: false };
    gateway.broker.send(&grant, send).await.unwrap().await.unwrap().seq.unwrap_or_default()
}
