//! Tests of authentication.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::broker::Broker;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::config::{Config, Level, Secret};
use crate::engine::embedded::Embedded;
use crate::hub::Hubs;
use crate::identity::{Identity, sign};
use crate::limits::{ConnectionLimiter, FailedProofs, ProvedAddresses, Rates};
use crate::protocol::Close;
use crate::server::{broker_limits, engine_settings, storage};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const KEY: &str = "a-key-of-a-backend-0123456789abcdef";

fn gateway(auth: Auth) -> Gateway {
    let mut config = Config { durability: Level::Memory, ..Config::default() };
    config.access.auth = auth;
    config.access.secrets.token = Some(Secret(SECRET.to_owned()));
    config.access.secrets.api_keys = Some(Secret(format!("shop:{KEY}")));
    let (hubs, limits) = (Hubs::new(4), broker_limits(&config));
    let settings = engine_settings(&config, Clock::Wall);
    let engine = Embedded::start(settings, hubs.clone(), &storage(&config)).unwrap();
    Gateway {
        broker: Broker::new(engine.into(), hubs, limits, Clock::Wall),
        identity: Identity::new(&config.access).unwrap().into(),
        rates: Rates::new(None, None).into(),
        access: crate::reloadable::Reloadable::new(config.access.clone()),
        connection_limiter: ConnectionLimiter::new(usize::MAX),
        budget: Budget::new(Budget::MOST),
        proved_addresses: ProvedAddresses::default(),
        failed_proofs: FailedProofs::default(),
        config: config.into(),
        shutdown: CancellationToken::new(),
        connections: TaskTracker::new(),
        tasks: TaskTracker::new(),
    }
}

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn token(user: &str, sid: Option<&str>) -> String {
    let claims: Value = json!({ "sub": user, "sid": sid, "exp": Clock::Wall.now() / 1000 + 3600 });
    sign(SECRET.as_bytes(), None, &claims).unwrap()
}

fn hidden(name: &str) -> Option<NamedSession> {
    Some(NamedSession::Hidden(session(name)))
}

async fn identify(
    gateway: &Gateway,
    bearer: Option<&str>,
    session: Option<NamedSession>,
    policy: SessionPolicy,
) -> Result<Grant, Refusal> {
    gateway.identify(Shown { bearer, session, address: Some([192, 0, 2, 1].into()) }, policy).await
}

async fn code(
    gateway: &Gateway,
    bearer: Option<&str>,
    session: Option<NamedSession>,
    policy: SessionPolicy,
) -> Code {
    identify(gateway, bearer, session, policy).await.unwrap_err().code
}

#[test]
fn a_bearer_is_a_token_or_a_key_and_nothing_else() {
    let bearer = |value: &'static str| {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
        super::bearer((&headers).into())
            .map(|bearer| bearer.map(str::to_owned))
            .map_err(|refusal| refusal.code)
    };
    assert_eq!(bearer("Bearer a.b.c"), Ok(Some("a.b.c".to_owned())));
    assert_eq!(bearer("bearer  key "), Ok(Some("key".to_owned())));
    for wrong in ["Basic abc", "Bearer", "Bearer ", ""] {
        assert_eq!(bearer(wrong), Err(Code::Unauthorized), "{wrong}");
    }
    assert_eq!(super::bearer((&HeaderMap::new()).into()).unwrap(), None);
}

#[tokio::test]
async fn a_token_is_for_its_session_only() {
    let gateway = gateway(Auth::Token);
    let token = token("ann", Some("A"));
    for requested in [None, hidden("A")] {
        let grant = identify(&gateway, Some(&token), requested, SessionPolicy::Require).await.unwrap();
        assert_eq!(grant.session(), Some(&session("A")));
    }
    let other = hidden("B");
    assert_eq!(code(&gateway, Some(&token), other, SessionPolicy::Require).await, Code::Forbidden);
    assert_eq!(gateway.broker.directory().user_of(&session("A")).await, Some(UserId::new("ann").unwrap()));
}

#[tokio::test]
async fn a_token_without_a_session_gets_one_that_only_its_user_may_name() {
    let gateway = gateway(Auth::Token);
    let (ann, bob) = (token("ann", None), token("bob", None));
    let grant = identify(&gateway, Some(&ann), None, SessionPolicy::Create).await.unwrap();
    let created = grant.session().cloned();
    let named = created.clone().map(NamedSession::Hidden);
    let grant = identify(&gateway, Some(&ann), named.clone(), SessionPolicy::Require).await.unwrap();
    assert_eq!(grant.session().cloned(), created);
    assert_eq!(code(&gateway, Some(&bob), named, SessionPolicy::Require).await, Code::Forbidden);
    assert_eq!(code(&gateway, Some(&bob), None, SessionPolicy::Require).await, Code::BadRequest);
}

#[tokio::test]
async fn in_token_mode_credentials_are_required() {
    let gateway = gateway(Auth::Token);
    let named = hidden("A");
    assert_eq!(code(&gateway, None, named, SessionPolicy::Create).await, Code::Unauthorized);
    assert_eq!(code(&gateway, Some("a.b.c"), None, SessionPolicy::Create).await, Code::Unauthorized);
}

#[tokio::test]
async fn backends_manage_and_clients_do_not() {
    let gateway = gateway(Auth::Token);
    let grant = identify(&gateway, Some(KEY), None, SessionPolicy::BackendOnly).await.unwrap();
    grant.may_manage().unwrap();
    let token = token("ann", Some("A"));
    assert_eq!(code(&gateway, Some(&token), None, SessionPolicy::BackendOnly).await, Code::Forbidden);
    let named = hidden("A");
    assert_eq!(code(&gateway, Some(KEY), named, SessionPolicy::Require).await, Code::Forbidden);
}

#[tokio::test]
async fn in_open_mode_everyone_is_accepted_but_a_wrong_key() {
    let gateway = gateway(Auth::Open);
    let named = hidden("A");
    let grant = identify(&gateway, None, named.clone(), SessionPolicy::Require).await.unwrap();
    assert_eq!(grant.session(), Some(&session("A")));
    assert!(grant.may_manage().is_err(), "keys are configured");
    let grant = identify(&gateway, Some(KEY), named.clone(), SessionPolicy::Require).await.unwrap();
    assert_eq!(grant.session(), Some(&session("A")));
    grant.may_manage().unwrap();
    assert_eq!(code(&gateway, Some("another key"), None, SessionPolicy::Require).await, Code::Unauthorized);
}

/// An id that can be a proof.
const ID: &str = "5f3c9a1be07d42886c0e9b7d13fa2465";

#[tokio::test]
async fn the_id_of_a_session_with_proof_is_a_bearer_and_a_session_but_not_in_an_address() {
    let gateway = gateway(Auth::Token);
    let (id, policy) = (session(ID), SessionPolicy::Require);
    for named in [hidden(ID), Some(NamedSession::InAddress(id.clone()))] {
        assert_eq!(code(&gateway, None, named.clone(), policy).await, Code::Unauthorized);
        assert_eq!(code(&gateway, Some(ID), named, policy).await, Code::Unauthorized);
    }
    let ann = Some(UserId::new("ann").unwrap());
    gateway.broker.register(&id, ann.clone(), Duration::from_secs(60), true).await.unwrap();
    let in_address = Some(NamedSession::InAddress(id.clone()));
    for (bearer, named) in [
        (None, hidden(ID)),
        (Some(ID), None),
        (Some(ID), hidden(ID)),
        (Some(ID), in_address.clone()),
        (Some(&*format!(" {ID}\n")), None),
    ] {
        let grant = identify(&gateway, bearer, named, policy).await.unwrap();
        let client = grant.client().unwrap();
        assert_eq!((&client.session, &client.user, client.proof), (&id, &ann, Proof::SessionId));
        assert!(client.send.is_none() && client.topics.is_none());
    }
    let refusal = identify(&gateway, None, in_address, policy).await.unwrap_err();
    assert!(refusal.code == Code::Unauthorized && refusal.message.contains("logs"), "{refusal:?}");
    assert_eq!(code(&gateway, Some(ID), hidden("B"), policy).await, Code::Forbidden);
    assert_eq!(code(&gateway, Some(ID), None, SessionPolicy::BackendOnly).await, Code::Forbidden);
    assert_eq!(code(&gateway, Some("a.b.c"), hidden(ID), policy).await, Code::Unauthorized, "a wrong token");
    gateway.broker.register(&id, None, Duration::from_secs(60), false).await.unwrap();
    let refusal = identify(&gateway, None, hidden(ID), policy).await.unwrap_err();
    assert!(refusal.message.contains("without `proof`"), "{refusal:?}");
}

#[tokio::test(start_paused = true)]
async fn wrong_proofs_are_limited_and_right_keys_and_tokens_are_not() {
    let gateway = gateway(Auth::Token);
    let (id, policy) = (session(ID), SessionPolicy::Create);
    gateway.broker.register(&id, None, Duration::from_secs(60), true).await.unwrap();
    gateway.broker.register(&session("x0"), None, Duration::from_secs(60), false).await.unwrap();
    let expired = json!({ "sub": "ann", "exp": Clock::Wall.now() / 1000 - 60 });
    let expired = sign(SECRET.as_bytes(), None, &expired).unwrap();
    // None of these is a guess.
    for _ in 0..30 {
        assert_eq!(code(&gateway, Some(&expired), None, policy).await, Code::Unauthorized);
        assert_eq!(code(&gateway, None, hidden("x0"), policy).await, Code::Unauthorized);
        assert_eq!(code(&gateway, None, None, policy).await, Code::Unauthorized);
    }
    let shown: [(_, Option<NamedSession>); 4] = [
        (None, hidden("5f3c9a1be07d42886c0e9b7d13fa2466")),
        (Some("5f3c9a1be07d42886c0e9b7d13fa2467"), None),
        (Some("a.b.c"), None),
        (Some("a key of a backend, or so it seems"), None),
    ];
    for _ in 0..5 {
        for (bearer, named) in &shown {
            assert_eq!(code(&gateway, *bearer, named.clone(), policy).await, Code::Unauthorized);
        }
    }
    for (bearer, named) in shown {
        let refusal = identify(&gateway, bearer, named, policy).await.unwrap_err();
        assert_eq!((refusal.code, refusal.close), (Code::RateLimited, Close::Overloaded));
    }
    assert_eq!(code(&gateway, None, hidden(ID), policy).await, Code::RateLimited, "it may be a guess");
    identify(&gateway, Some(KEY), None, policy).await.unwrap();
    identify(&gateway, Some(&token("ann", None)), None, policy).await.unwrap();
    assert_eq!(
        code(&gateway, Some(&expired), None, policy).await,
        Code::Unauthorized,
        "it is told to fetch another"
    );
    tokio::time::advance(Duration::from_secs(1)).await;
    identify(&gateway, None, hidden(ID), policy).await.unwrap();
}
