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
    Register { session, user, ttl: Duration::from_secs(100), by: Registrar::Backend }
}

pub(super) async fn registered_sessions_are_found_by_their_user_until_they_end(lab: Lab) {
    let (engine, _) = lab.engine();
    let session = |name: &str| SessionId::new(name).unwrap();
    let (ann, bob) = (UserId::new("ann").unwrap(), UserId::new("bob").unwrap());
    let (short, long) = (Duration::from_secs(10), Duration::from_secs(100));
    let register = |name: &str, user: Option<&UserId>, ttl, by| {
        engine.register(&Register { session: session(name), user: user.cloned(), ttl, by })
    };
    let backend = Registrar::Backend;
    register("1", Some(&ann), short, backend).await.unwrap();
    register("2", Some(&ann), long, backend).await.unwrap();
    register("3", None, long, backend).await.unwrap();
    assert_eq!(sessions_of(&engine, &ann).await, [session("1"), session("2")]);
    assert_eq!(registration(&engine, &session("3")).await.unwrap().user, None);
    // A session does not change hands, and its user is kept by who names none.
    assert_eq!(register("2", Some(&bob), long, backend).await.unwrap_err(), RegisterError::Taken);
    assert_eq!(register("2", Some(&bob), long, Registrar::Token).await.unwrap_err(), RegisterError::Taken);
    register("2", None, long, backend).await.unwrap();
    assert_eq!(registration(&engine, &session("2")).await.unwrap().user, Some(ann.clone()));
    engine.end(&session("2"), Duration::ZERO).await.unwrap();
    register("2", Some(&bob), long, Registrar::Token).await.unwrap();
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
    assert_eq!(register("2", Some(&bob), long, Registrar::Token).await.unwrap_err(), RegisterError::Ended);
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
