//! Lists for operators.

use super::registrations::of_backend;
use super::*;
use crate::message::NameRange;

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn texts<T: ToString>(names: &[T]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

pub(super) async fn registered_users_and_sessions_are_listed_in_order_until_they_end(lab: Lab) {
    let (engine, _) = lab.engine();
    for (name, user) in [("1", "cid"), ("2", "ann"), ("3", "bob"), ("4", "ann"), ("5", "anton")] {
        engine.register(&of_backend(&session(name), user)).await.unwrap();
    }
    engine.confirm(Lookup::Session(&session("5"))).await;
    let users = |prefix, after, limit| texts(&engine.users(NameRange { prefix, after }, limit));
    assert_eq!(users("", None, 9), ["ann", "anton", "bob", "cid"]);
    assert_eq!(
        (users("an", None, 1), users("an", Some("ann"), 9)),
        (vec!["ann".into()], vec!["anton".into()])
    );

    let mut listed = Vec::new();
    // By pages of two: each begins after the last handle of the one before.
    while let page = engine.sessions_by_handle(listed.last().map(|(handle, _)| *handle), 2)
        && !page.is_empty()
    {
        assert!(page.len() <= 2);
        listed.extend(page);
    }
    assert!(listed.is_sorted_by_key(|(handle, _)| *handle));
    assert!(listed.iter().all(|(handle, session)| engine.handle(session) == *handle));
    let mut names: Vec<String> = listed.iter().map(|(_, session)| session.to_string()).collect();
    names.sort();
    assert_eq!(names, ["1", "2", "3", "4", "5"]);

    engine.end(&session("4"), Duration::from_secs(100)).await.unwrap();
    engine.end(&session("1"), Duration::ZERO).await.unwrap();
    engine.confirm(Lookup::Session(&session("1"))).await;
    assert_eq!(users("", None, 9), ["ann", "anton", "bob"], "ann has another session");
    assert_eq!(engine.sessions_by_handle(None, 9).len(), 3);
    let all = engine.sessions(NameRange::default(), 9).await;
    assert_eq!(texts(&all), ["2", "3", "5"], "revoked ones are not registered");
}

pub(super) async fn sessions_and_topics_with_messages_are_listed_until_they_have_none(lab: Lab) {
    let (engine, _) = lab.engine();
    let mut last = Seq::START;
    for name in ["b", "a", "c"] {
        last = put(&engine, &mailbox(name), "1").await;
        put(&engine, &topic(&format!("news/{name}")), "22").await;
    }
    engine.register(&of_backend(&session("bb"), "ann")).await.unwrap();
    let sessions = async |prefix, after, limit| {
        let range = NameRange { prefix, after };
        texts(&engine.sessions(range, limit).await)
    };
    assert_eq!(sessions("", None, 9).await, ["a", "b", "bb", "c"]);
    assert_eq!(sessions("", Some("a"), 2).await, ["b", "bb"]);
    assert_eq!(sessions("b", None, 9).await, ["b", "bb"]);
    engine.trim(&mailbox("c"), last);
    assert_eq!(sessions("", None, 9).await, ["a", "b", "bb"]);
    let topics = |prefix, after, limit| texts(&engine.topics(NameRange { prefix, after }, limit));
    assert_eq!(topics("news/", None, 9), ["news/a", "news/b", "news/c"]);
    assert_eq!(topics("", Some("news/a"), 1), ["news/b"]);
    lab.clock.advance(Duration::from_secs(7200));
    expire_all(&engine).await;
    assert_eq!((topics("", None, 9), sessions("", None, 9).await), (vec![], vec![]));
}

pub(super) async fn what_an_address_holds_is_counted(lab: Lab) {
    let (engine, _) = lab.engine();
    let address = topic("news");
    assert_eq!(engine.stored(&address).await.messages, 0);
    for n in 0..3 {
        put(&engine, &address, &n.to_string()).await;
    }
    let stored = engine.stored(&address).await;
    assert_eq!(stored.messages, 3);
    // With its envelope each is longer than its payload.
    assert!(stored.bytes.is_none_or(|bytes| bytes > 3 * 20), "{stored:?}");
    assert_eq!(engine.stored(&topic("other")).await.messages, 0);
}
