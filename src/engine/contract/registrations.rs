//! Registered sessions and their end. Look-ups are confirmed first: a node's copy may be behind.

use super::*;

/// The sessions of a user, as all nodes together know.
pub(super) async fn sessions_of(engine: &Engine, user: &UserId) -> Vec<SessionId> {
    engine.confirm(Lookup::User(user)).await;
    engine.sessions_of(user)
}

/// A registration, as all nodes together know.
pub(super) async fn registration(engine: &Engine, session: &SessionId) -> Option<Registration> {
    engine.confirm(Lookup::Session(session)).await;
    engine.registration(session)
}

/// The session of a handle, as all nodes together know.
pub(super) async fn session_of(engine: &Engine, handle: Handle) -> Option<SessionId> {
    engine.confirm(Lookup::Handle(handle)).await;
    engine.session_of(handle)
}

/// Whether a session was ended, as all nodes together know.
pub(super) async fn is_revoked(engine: &Engine, session: &SessionId) -> bool {
    engine.confirm(Lookup::Session(session)).await;
    engine.is_revoked(session)
}

/// A registration of a backend.
pub(super) fn of_backend(session: &SessionId, user: &str) -> Register {
    let (session, user) = (session.clone(), Some(UserId::new(user).unwrap()));
    Register { session, user, ttl: Duration::from_secs(100), by: Registrar::Backend { proof: false } }
}

pub(super) async fn registered_sessions_are_found_by_their_user_until_they_end(lab: Lab) {
    let (engine, _) = lab.engine();
    let session = |name: &str| SessionId::new(name).unwrap();
    let (ann, bob) = (UserId::new("ann").unwrap(), UserId::new("bob").unwrap());
    let (short, long) = (Duration::from_secs(10), Duration::from_secs(100));
    let register = |name: &str, user: Option<&UserId>, ttl, by| {
        engine.register(&Register { session: session(name), user: user.cloned(), ttl, by })
    };
    let backend = Registrar::Backend { proof: false };
    register("1", Some(&ann), short, backend).await.unwrap();
    register("2", Some(&ann), long, backend).await.unwrap();
    register("3", None, long, backend).await.unwrap();
    assert_eq!(sessions_of(&engine, &ann).await, [session("1"), session("2")]);
    assert_eq!(registration(&engine, &session("3")).await.unwrap().user, None);
    // A session does not change hands, and its user is kept by who names none.
    assert_eq!(register("2", Some(&bob), long, backend).await.unwrap_err(), RegisterError::Taken);
    assert_eq!(
        register("2", Some(&bob), long, Registrar::Token { until: 0 }).await.unwrap_err(),
        RegisterError::Taken
    );
    register("2", None, long, backend).await.unwrap();
    assert_eq!(registration(&engine, &session("2")).await.unwrap().user, Some(ann.clone()));
    engine.end(&session("2"), Duration::ZERO).await.unwrap();
    register("2", Some(&bob), long, Registrar::Token { until: 0 }).await.unwrap();
    assert_eq!(
        (sessions_of(&engine, &ann).await, sessions_of(&engine, &bob).await),
        (vec![session("1")], vec![session("2")])
    );
    lab.clock.advance(short);
    assert_eq!(sessions_of(&engine, &ann).await, []);
    assert_eq!(registration(&engine, &session("1")).await, None);
    // Ended, and revoked for tokens until a backend says otherwise, or the time is over.
    engine.end(&session("2"), long).await.unwrap();
    assert!(
        is_revoked(&engine, &session("2")).await
            && session_of(&engine, engine.handle(&session("2"))).await.is_none()
    );
    assert_eq!(
        register("2", Some(&bob), long, Registrar::Token { until: 0 }).await.unwrap_err(),
        RegisterError::Ended
    );
    expire_all(&engine).await;
    assert_eq!(
        (sessions_of(&engine, &bob).await, registration(&engine, &session("2")).await),
        (vec![], None)
    );
    assert!(registration(&engine, &session("3")).await.is_some());
    assert_eq!(session_of(&engine, engine.handle(&session("3"))).await, Some(session("3")));
    register("2", Some(&ann), long, backend).await.unwrap();
    assert_eq!(sessions_of(&engine, &ann).await, [session("2")]);
}

pub(super) async fn who_waits_for_a_session_is_woken_when_it_is_registered(lab: Lab) {
    let (engine, _) = lab.engine();
    let session = SessionId::new("A").unwrap();
    let waiting = tokio::spawn({
        let (engine, session) = (engine.clone(), session.clone());
        async move {
            loop {
                let mut arrived = std::pin::pin!(engine.arrivals().next(&session));
                arrived.as_mut().enable();
                if let Some(registration) = engine.registration(&session) {
                    return registration;
                }
                arrived.await;
            }
        }
    });
    tokio::task::yield_now().await;
    engine.register(&of_backend(&session, "ann")).await.unwrap();
    let registration = timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert_eq!(registration.user, Some(UserId::new("ann").unwrap()));
}

/// The outcomes that the receipts in a mailbox tell, once there are so many.
async fn outcomes(engine: &Engine, address: &Address, count: usize) -> Vec<bool> {
    let items = loop {
        let items = items(engine, address, count).await;
        if items.len() >= count {
            break items;
        }
        tokio::task::yield_now().await;
    };
    let expired = |item: &Item| match item {
        Item::Message(message) => message.frame().as_str().contains(r#""state":"expired""#),
        Item::Gap(gap) => panic!("{gap:?}"),
    };
    items.iter().map(expired).collect()
}

/// What waits for the owner of a session is there when the owner comes back, and gone when another one comes. What came
/// while nobody was registered is for whoever comes.
pub(super) async fn what_waits_is_for_the_owner_only(lab: Lab) {
    for (swept, by) in [(false, Registrar::Backend { proof: false }), (true, Registrar::Token { until: 0 })] {
        let (engine, _) = lab.engine();
        let (a, session, ttl) = (mailbox("A"), SessionId::new("A").unwrap(), Duration::from_secs(10));
        let register = |user: &str| {
            let user = Some(UserId::new(user).unwrap());
            engine.register(&Register { session: session.clone(), user, ttl, by })
        };
        let expire = async || {
            lab.clock.advance(2 * ttl);
            if swept {
                expire_all(&engine).await;
            }
        };
        put(&engine, &a, "0").await;
        register("ann").await.unwrap();
        let id = Some(MessageId::new("c-1").unwrap());
        engine.append(Append { id, receipt: true, ..append(&a, "1") }).await.unwrap();
        expire().await;
        register("ann").await.unwrap();
        expect(&engine, &a, Seq::START, &["0", "1"]).await;
        expire().await;
        put(&engine, &a, "2").await;
        register("bob").await.unwrap();
        expect(&engine, &a, Seq::START, &["2"]).await;
        assert_eq!(outcomes(&engine, &mailbox("S"), 1).await, [true], "swept: {swept}");
        // The id was used for the last owner's message.
        put_id(&engine, &a, "S", "c-1", "3").await;
        expect(&engine, &a, Seq::START, &["2", "3"]).await;
    }
}

/// A session is found for a user, and changes hands before the message is stored.
pub(super) async fn a_message_for_a_user_reaches_no_other_user(lab: Lab) {
    let (engine, _) = lab.engine();
    let (a, session) = (mailbox("A"), SessionId::new("A").unwrap());
    let user = |name: &str| Some(UserId::new(name).unwrap());
    let send = |name: &str, payload: &str| engine.append(Append { user: user(name), ..append(&a, payload) });
    assert_eq!(send("ann", "0").await, Err(EngineError::AnotherUser), "nobody is registered");
    engine.register(&of_backend(&session, "ann")).await.unwrap();
    send("ann", "1").await.unwrap();
    engine.end(&session, Duration::ZERO).await.unwrap();
    assert_eq!(send("ann", "2").await, Err(EngineError::AnotherUser));
    engine.register(&of_backend(&session, "bob")).await.unwrap();
    assert_eq!(send("ann", "3").await, Err(EngineError::AnotherUser));
    send("bob", "4").await.unwrap();
    put(&engine, &a, "5").await;
    expect(&engine, &a, Seq::START, &["4", "5"]).await;
}

/// What is for one registration of a session is not for the next one, though neither has a user.
pub(super) async fn a_message_for_a_registration_is_not_for_the_next_one(lab: Lab) {
    let (engine, _) = lab.engine();
    let (a, session) = (mailbox("A"), SessionId::new("A").unwrap());
    let by = Registrar::Backend { proof: false };
    let register = || Register { session: session.clone(), user: None, ttl: Duration::from_secs(100), by };
    let send = |since, payload: &str| engine.append(Append { since: Some(since), ..append(&a, payload) });
    engine.register(&register()).await.unwrap();
    let first = registration(&engine, &session).await.unwrap().since;
    send(first, "1").await.unwrap();
    engine.end(&session, Duration::from_secs(100)).await.unwrap();
    assert_eq!(send(first, "2").await, Err(EngineError::AnotherUser), "nobody is registered");
    engine.register(&register()).await.unwrap();
    assert_eq!(send(first, "3").await, Err(EngineError::AnotherUser));
    let second = registration(&engine, &session).await.unwrap().since;
    send(second, "4").await.unwrap();
    expect(&engine, &a, Seq::START, &["4"]).await;
}

/// The sessions of one token after the other give way when their user has too many. They keep their owner.
pub(super) async fn a_session_that_gives_way_keeps_its_owner(lab: Lab) {
    let (engine, _) = lab.engine_with(Settings { sessions_per_user: 1, ..lab.settings() });
    let register = |name: &str, user: &str| {
        let (session, user) = (SessionId::new(name).unwrap(), Some(UserId::new(user).unwrap()));
        let (ttl, by) = (Duration::from_secs(10), Registrar::Token { until: 0 });
        engine.register(&Register { session, user, ttl, by })
    };
    for other in ["ann", "bob"] {
        register("A", "ann").await.unwrap();
        put(&engine, &mailbox("A"), "1").await;
        register("B", "ann").await.unwrap();
        register("A", other).await.unwrap();
        let expected: &[&str] = if other == "ann" { &["1"] } else { &[] };
        expect(&engine, &mailbox("A"), Seq::START, expected).await;
    }
}

/// The readers of a session end when another user gets it, and not when its user comes back.
pub(super) async fn another_owner_ends_the_readers(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let (a, session) = (mailbox("A"), SessionId::new("A").unwrap());
    engine.register(&of_backend(&session, "ann")).await.unwrap();
    let mut before = reader(&engine, &hubs, &a, Seq::START);
    put(&engine, &a, "1").await;
    assert_eq!(next(&mut before).await, "1");
    engine.trim(&a, Seq(u64::MAX));
    for user in ["ann", "bob"] {
        assert!(before.ended().is_none(), "{user}");
        lab.clock.advance(Duration::from_secs(100));
        expire_all(&engine).await;
        engine.register(&of_backend(&session, user)).await.unwrap();
    }
    put(&engine, &a, "2").await;
    assert!(timeout(Duration::from_secs(10), before.next()).await.unwrap().is_none());
    assert_eq!(before.ended(), Some(EndReason::OwnerChanged));
}

/// An ended session does not come back with a token that is known to be good for longer.
pub(super) async fn a_known_token_is_barred_for_as_long_as_it_is_good(lab: Lab) {
    let (engine, _) = lab.engine();
    let (session, ttl) = (SessionId::new("A").unwrap(), Duration::from_secs(10));
    let until = lab.clock.now() + 100_000;
    let user = Some(UserId::new("ann").unwrap());
    let token = Register { session: session.clone(), user, ttl, by: Registrar::Token { until } };
    engine.register(&token).await.unwrap();
    engine.end(&session, ttl).await.unwrap();
    lab.clock.advance(Duration::from_secs(99));
    expire_all(&engine).await;
    assert_eq!(engine.register(&token).await.unwrap_err(), RegisterError::Ended);
    lab.clock.advance(Duration::from_secs(1));
    engine.register(&token).await.unwrap();
}

/// Who joins afterwards begins anew, and is not ended.
pub(super) async fn the_end_of_a_session_ends_its_readers(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let (a, session) = (mailbox("A"), SessionId::new("A").unwrap());
    let mut before = reader(&engine, &hubs, &a, Seq::START);
    put(&engine, &a, "1").await;
    assert_eq!(next(&mut before).await, "1");
    assert_eq!(engine.presence(&a).await.websocket, 1);
    engine.end(&session, Duration::ZERO).await.unwrap();
    assert!(timeout(Duration::from_secs(10), before.next()).await.unwrap().is_none());
    assert_eq!(engine.presence(&a).await.websocket, 0);
    let mut after = reader(&engine, &hubs, &a, engine.position(&a).await.floor);
    put(&engine, &a, "2").await;
    assert_eq!(next(&mut after).await, "2");
    drop(before);
    assert_eq!(engine.presence(&a).await.websocket, 1);
}
