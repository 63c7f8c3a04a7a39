//! What is there after a restart, in order or not.

use super::registrations::{is_revoked, registration, session_of, sessions_of};
use super::*;

/// Everything that was answered is there; nothing that was acknowledged in order is, once that is stored.
pub(super) async fn what_is_stored_is_there_after_a_crash(lab: Lab) {
    for crash in [false, true] {
        let (engine, _) = lab.engine();
        let (a, b, news) = (mailbox("A"), mailbox("B"), topic("news"));
        let (epoch, origin) = (engine.epoch(), engine.origin(&a));
        let first = put(&engine, &a, "1").await;
        let second = put(&engine, &a, "2").await;
        let third = put_id(&engine, &a, "S", "c-3", "3").await;
        let id = Some(MessageId::new("c-4").unwrap());
        engine.append(Append { id, receipt: true, ..append(&a, "4") }).await.unwrap();
        let emptied = put(&engine, &b, "1").await;
        for n in 1..=8 {
            put(&engine, &news, &n.to_string()).await;
        }
        let id = Some(MessageId::new("c-5").unwrap());
        let (c, sender) = (mailbox("C"), author("T"));
        let receipted = Append { id, receipt: true, author: sender, ..append(&c, "1") };
        let receipted = engine.append(receipted).await.unwrap();
        engine.trim(&a, first);
        engine.trim(&b, emptied);
        // A deletion is held back for a moment. One with a receipt is not, and takes the others along.
        engine.trim(&c, receipted);
        let last = put(&engine, &topic("other"), "1").await;
        let engine = lab.again(engine, crash);
        assert_eq!((engine.epoch(), engine.origin(&a)), (epoch, origin), "crash: {crash}");
        assert!(engine.newest(&a, last).await.unwrap() >= last || !is_one_store(&engine));
        expect(&engine, &a, Seq::START, &["2", "3", "4"]).await;
        // Nothing was missed.
        expect(&engine, &a, first, &["2", "3", "4"]).await;
        expect(&engine, &news, Seq::START, &["4", "5", "6", "7", "8"]).await;
        assert_eq!(found(&engine, &b, Seq::START).await, [""; 0]);
        assert_eq!(found(&engine, &b, emptied).await, [""; 0], "the emptied mailbox is remembered");
        let before = Seq(emptied.0 - 1);
        expect(&engine, &b, before, &[&gap(before, emptied, GapReason::Acknowledged)]).await;
        assert_eq!(put_id(&engine, &a, "S", "c-3", "3").await, third, "ids survive");
        let id = Some(MessageId::new("c-3").unwrap());
        let reused = engine.append(Append { id, ..append(&a, "9") }).await.unwrap_err();
        assert!(matches!(reused, EngineError::IdReused { .. }), "{reused}");
        let next = put(&engine, &b, "2").await;
        assert!(next > last || !is_one_store(&engine));
        engine.trim(&a, second);
        engine.trim(&a, Seq(u64::MAX));
        // The receipt that was promised before.
        put(&engine, &b, "3").await;
        let mut receipts = Vec::new();
        while receipts.is_empty() {
            receipts = engine.read(&mailbox("S"), Seq::START, 10).await.unwrap().items;
            tokio::task::yield_now().await;
        }
        assert_eq!(receipts.len(), 1, "crash: {crash}");
    }
}

/// An author's last ids are there after a crash, though another author sent many times what is remembered.
pub(super) async fn an_authors_last_ids_survive_a_flood_and_a_crash(lab: Lab) {
    let settings = Settings { dedup_ids: 20, ..lab.settings() };
    let (mut engine, _) = lab.engine_with(settings);
    let mut mine = Vec::new();
    for n in 0..10 {
        mine.push(put_id(&engine, &topic("t"), "S", &format!("c-{n}"), "1").await);
    }
    for crash in [true, false] {
        let mut last = Seq::START;
        for n in 0..300 {
            last = put_id(&engine, &topic("t"), "F", &format!("{crash}-{n}"), "1").await;
        }
        engine = lab.again_with(settings, engine, crash);
        assert_eq!(put_id(&engine, &topic("t"), "F", &format!("{crash}-299"), "1").await, last);
        for (n, seq) in mine.iter().enumerate() {
            let again = put_id(&engine, &topic("t"), "S", &format!("c-{n}"), "1").await;
            assert_eq!(again, *seq, "c-{n}, crash: {crash}");
        }
    }
}

pub(super) async fn registrations_survive_restarts(lab: Lab) {
    for crash in [false, true] {
        let (engine, _) = lab.engine();
        let session = |n: usize| SessionId::new(&format!("S{n}")).unwrap();
        let ann = UserId::new("ann").unwrap();
        for n in 0..5 {
            let (user, ttl, by) =
                (Some(ann.clone()), Duration::from_secs(100), Registrar::Backend { proof: false });
            engine.register(&Register { session: session(n), user, ttl, by }).await.unwrap();
        }
        engine.end(&session(3), Duration::from_secs(100)).await.unwrap();
        let handle = engine.handle(&session(4));
        let before = registration(&engine, &session(4)).await;
        let engine = lab.again(engine, crash);
        assert_eq!(sessions_of(&engine, &ann).await, [0, 1, 2, 4].map(session), "crash: {crash}");
        assert_eq!(registration(&engine, &session(4)).await, before);
        assert_eq!(session_of(&engine, handle).await, Some(session(4)));
        assert!(is_revoked(&engine, &session(3)).await);
    }
}

/// Whether the id of a session is a proof everywhere, and until when.
async fn proof(engine: &Engine, session: &SessionId) -> Option<(bool, u64)> {
    match registration(engine, session).await?.source {
        RegistrationSource::Backend { until, proof } => Some((proof, until)),
        _ => None,
    }
}

/// The last word of a backend says whether an id is a proof, over restarts too. A token changes nothing about it.
pub(super) async fn a_backend_makes_an_id_a_proof(lab: Lab) {
    for crash in [false, true] {
        let (engine, _) = lab.engine();
        let session = SessionId::new("A").unwrap();
        let (short, long) = (Duration::from_secs(10), Duration::from_secs(100));
        let register = |user: &str, ttl, by| {
            let user = Some(UserId::new(user).unwrap());
            Register { session: session.clone(), user, ttl, by }
        };
        let backend = |proof| Registrar::Backend { proof };
        let (token, start) = (Registrar::Token { until: 0 }, lab.clock.now());
        engine.register(&register("ann", short, backend(true))).await.unwrap();
        engine.register(&register("ann", long, token)).await.unwrap();
        let (engine, until) = (lab.again(engine, crash), start + 10_000);
        assert_eq!(proof(&engine, &session).await, Some((true, until)));
        engine.register(&register("ann", long, backend(false))).await.unwrap();
        let engine = lab.again(engine, crash);
        assert_eq!(proof(&engine, &session).await, Some((false, start + 100_000)));
        engine.register(&register("ann", short, backend(true))).await.unwrap();
        // Who gets the session with a token afterwards does not get a proof.
        lab.clock.advance(short);
        // Until the next commit the store counts the one before as not finished.
        put(&engine, &topic("t"), "1").await;
        expire_all(&engine).await;
        engine.register(&register("bob", long, token)).await.unwrap();
        let engine = lab.again(engine, crash);
        assert_eq!(proof(&engine, &session).await, None);
        engine.end(&session, Duration::ZERO).await.unwrap();
        engine.register(&register("ann", short, Registrar::Anyone)).await.unwrap();
        assert_eq!(proof(&engine, &session).await.map(|(proof, _)| proof), Some(false));
        engine.end(&session, Duration::ZERO).await.unwrap();
    }
}

/// A restart changes nothing about whose messages wait, wherever it comes.
pub(super) async fn former_owners_survive_restarts(lab: Lab) {
    for crash in [false, true] {
        for user in ["ann", "bob"] {
            let (engine, _) = lab.engine();
            let (a, session) = (mailbox("A"), SessionId::new("A").unwrap());
            let register = |user: &str| Register {
                session: session.clone(),
                user: Some(UserId::new(user).unwrap()),
                ttl: Duration::from_secs(10),
                by: Registrar::Backend { proof: false },
            };
            engine.register(&register("ann")).await.unwrap();
            put(&engine, &a, "1").await;
            lab.clock.advance(Duration::from_secs(10));
            let engine = lab.again(engine, crash);
            expire_all(&engine).await;
            // Writes what is noted so far.
            put(&engine, &topic("t"), "1").await;
            let engine = lab.again(engine, crash);
            engine.register(&register(user)).await.unwrap();
            let engine = lab.again(engine, crash);
            let expected: &[&str] = if user == "ann" { &["1"] } else { &[] };
            expect(&engine, &a, Seq::START, expected).await;
        }
    }
}

/// The machine's clock is set while the store is in use, or between two uses of it: to the right time, or back.
pub(super) async fn a_clock_that_is_set_ends_nothing_over_restarts(lab: Lab) {
    let (now, day) = (lab.clock.now(), 86_400_000);
    for (first, second, in_use) in [
        (1_000_000, now, true),
        (1_000_000, now, false),
        (now, 1_000_000, true),
        (now, 1_000_000, false),
        (now, now + day, true),
        (now, now - day, true),
        (now, now - day, false),
    ] {
        for crash in [false, true] {
            let what = format!("{first} to {second}, in use: {in_use}, crash: {crash}");
            lab.clock.set(first);
            let (engine, _) = lab.engine();
            let a = mailbox("A");
            put_ttl(&engine, &a, "1", 100).await;
            if in_use {
                lab.clock.set(second);
            }
            // The clock is noted with this commit.
            put(&engine, &mailbox("B"), "2").await;
            let engine = lab.again(engine, crash);
            lab.clock.set(second);
            let engine = lab.again(engine, crash);
            expect(&engine, &a, Seq::START, &["1"]).await;
            lab.clock.advance(Duration::from_secs(100));
            assert!(!found(&engine, &a, Seq::START).await.contains(&"1".to_owned()), "{what}");
        }
    }
}
