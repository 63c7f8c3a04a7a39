//! Times to live, the age of a history, and the window in which ids are remembered.

use super::*;
use crate::engine::{Lookup, Register, Registrar};

pub(super) async fn messages_end_with_their_time_and_every_hole_is_told_once_in_order(lab: Lab) {
    for swept in [false, true] {
        let (engine, _) = lab.engine();
        let a = mailbox("A");
        let first = put(&engine, &a, "1").await;
        let second = put_ttl(&engine, &a, "2", 10).await;
        let third = put(&engine, &a, "3").await;
        let fourth = put_ttl(&engine, &a, "4", 5).await;
        let fifth = put_ttl(&engine, &a, "5", 10).await;
        lab.clock.advance(Duration::from_secs(9));
        let hole = gap(third, fourth, GapReason::Expired);
        assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2", "3", &hole, "5"]);
        lab.clock.advance(Duration::from_secs(1));
        if swept {
            expire_all(&engine).await;
        }
        let all = found(&engine, &a, first).await;
        let holes = [(first, second), (third, fifth)].map(|(from, to)| gap(from, to, GapReason::Expired));
        assert_eq!(all, [&holes[0], "3", &holes[1]], "swept: {swept}");
        let sixth = put(&engine, &a, "6").await;
        let rest = found(&engine, &a, fourth).await;
        assert_eq!(rest, [gap(fourth, fifth, GapReason::Expired), "6".into()], "swept: {swept}");
        assert_eq!(found(&engine, &a, fifth).await, ["6"]);
        engine.trim(&a, sixth);
        assert_eq!(found(&engine, &a, sixth).await, [""; 0]);
    }
}

pub(super) async fn a_topic_keeps_nothing_longer_than_its_age(lab: Lab) {
    let (engine, _) = lab.engine();
    let news = topic("news");
    put_ttl(&engine, &news, "1", 1_000_000).await;
    lab.clock.advance(Duration::from_secs(3600));
    assert_eq!(found(&engine, &news, Seq::START).await, [""; 0]);
    expire_all(&engine).await;
    assert_eq!(found(&engine, &news, Seq::START).await, [""; 0]);
}

pub(super) async fn a_retry_with_the_same_id_is_stored_once(lab: Lab) {
    let (engine, _) = lab.engine();
    let (a, b) = (mailbox("A"), mailbox("B"));
    let first = put_id(&engine, &a, "S", "c-1", "1").await;
    assert_eq!(put_id(&engine, &a, "S", "c-1", "1").await, first);
    assert_ne!(put_id(&engine, &a, "T", "c-1", "2").await, first, "another sender");
    assert_ne!(put_id(&engine, &b, "S", "c-1", "3").await, first, "another receiver");
    assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2"]);
    // Also after it was read and acknowledged.
    engine.trim(&a, Seq(u64::MAX));
    assert_eq!(put_id(&engine, &a, "S", "c-1", "1").await, first);
    assert_eq!(found(&engine, &a, Seq::START).await, [""; 0]);
    if is_one_store(&engine) {
        lab.clock.advance(Duration::from_secs(120));
        assert_ne!(put_id(&engine, &a, "S", "c-1", "1").await, first, "the window is over");
    }
}

pub(super) async fn an_id_of_another_message_is_refused(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    let first = put_id(&engine, &a, "S", "c-1", "1").await;
    let send = |author, payload| {
        let id = Some(MessageId::new("c-1").unwrap());
        engine.append(Append { author, id, ..append(&a, payload) })
    };
    let window = lab.settings().dedup_window;
    assert_eq!(send(author("S"), "2").await.unwrap_err(), EngineError::IdReused { window });
    assert_eq!(send(author("S"), "1").await.unwrap(), first, "the refused one has changed nothing");
    send(Author::Anonymous, "2").await.unwrap();
    send(Author::Anonymous, "3").await.unwrap();
    assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2", "3"], "they may be two senders");
    if is_one_store(&engine) {
        lab.clock.advance(window);
        send(author("S"), "2").await.unwrap();
    }
}

/// Holes that grow from both sides are still one hole, up to its end.
pub(super) async fn a_hole_is_told_up_to_its_end(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    let first = put(&engine, &a, "1").await;
    let second = put_ttl(&engine, &a, "2", 20).await;
    let third = put_ttl(&engine, &a, "3", 10).await;
    put(&engine, &a, "4").await;
    for _ in 0..2 {
        lab.clock.advance(Duration::from_secs(10));
        expire_all(&engine).await;
    }
    assert_eq!(found(&engine, &a, first).await, [gap(first, third, GapReason::Expired), "4".into()]);
    assert_eq!(found(&engine, &a, second).await, [gap(second, third, GapReason::Expired), "4".into()]);
}

/// A store in which something of everything lasts for 100 s.
async fn lasting(engine: &Engine) -> Seq {
    let ttl = Duration::from_secs(100);
    for name in ["ended", "user"] {
        let session = SessionId::new(name).unwrap();
        let user = Some(UserId::new("ann").unwrap());
        engine
            .register(&Register { session, user, ttl, by: Registrar::Backend { proof: false } })
            .await
            .unwrap();
    }
    engine.end(&SessionId::new("ended").unwrap(), ttl).await.unwrap();
    put_ttl(engine, &mailbox("A"), "1", 100).await;
    put_id(engine, &mailbox("B"), "S", "c-1", "2").await
}

/// What of [`lasting`] is there.
async fn is_there(engine: &Engine, retry: Seq) -> [bool; 4] {
    let [user, ended] = ["user", "ended"].map(|name| SessionId::new(name).unwrap());
    engine.confirm(Lookup::Session(&user)).await;
    engine.confirm(Lookup::Session(&ended)).await;
    [
        items(engine, &mailbox("A"), 0).await.iter().any(|item| matches!(item, Item::Message(_))),
        put_id(engine, &mailbox("B"), "S", "c-1", "2").await == retry,
        engine.registration(&user).is_some(),
        engine.is_revoked(&ended),
    ]
}

/// Everything ends by the time that passes, whatever the machine's clock is set to meanwhile.
pub(super) async fn a_clock_that_is_set_ends_nothing_early_nor_late(lab: Lab) {
    let day = 86_400_000;
    let now = lab.clock.now();
    for jumps in [[0, now], [now + day, now - day]] {
        let (engine, _) = lab.engine();
        let retry = lasting(&engine).await;
        for jump in jumps {
            lab.clock.set(jump);
            expire_all(&engine).await;
            assert_eq!(is_there(&engine, retry).await, [true; 4], "{jumps:?}");
            let user = SessionId::new("user").unwrap();
            assert_eq!(engine.registration(&user).unwrap().expires_at, jump + 100_000, "as the clock is now");
        }
        lab.clock.advance(Duration::from_secs(100));
        expire_all(&engine).await;
        assert_eq!(is_there(&engine, retry).await, [false, true, false, false], "{jumps:?}");
        lab.clock.advance(Duration::from_secs(20));
        assert!(!is_there(&engine, retry).await[1], "ids last for 120 s");
    }
}
