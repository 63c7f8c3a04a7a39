//! Shares of authors: promise 11.

use super::*;
use crate::engine::shares::MAX_TOPICS;

/// Bounds in which every share is a whole number of messages.
fn shared(lab: &Lab) -> Settings {
    let mailbox = Bounds { messages: 20, ..bounds() };
    Settings { mailbox, shares: true, ..lab.settings() }
}

/// A message of a client, or of a backend.
fn paid(by: Option<&str>, to: &Address, payload: &str) -> Append {
    let payer = by.map(|name| SenderName::new(name).unwrap());
    let message = Message { from: payer.clone(), ..from("S", payload) };
    Append { payer, message, ..append(to, payload) }
}

/// Appends until one is refused. Returns how many were stored, and why the last one was not.
async fn fill(
    engine: &Engine,
    by: Option<&str>,
    to: impl Fn(usize) -> Address,
    payload: &str,
) -> (usize, EngineError) {
    for n in 0.. {
        if let Err(refused) = engine.append(paid(by, &to(n), payload)).await {
            return (n, refused);
        }
    }
    unreachable!("something is bounded")
}

fn share_of(refused: &EngineError) -> Option<Share> {
    match refused {
        EngineError::QuotaExceeded(OverShare { share, .. }) => Some(*share),
        _ => None,
    }
}

pub(super) async fn an_author_takes_its_share_of_a_mailbox_and_others_go_on(lab: Lab) {
    let (engine, _) = lab.engine_with(shared(&lab));
    let a = mailbox("A");
    let (stored, refused) = fill(&engine, Some("ann"), |_| a.clone(), "1").await;
    assert_eq!((stored, share_of(&refused)), (10, Some(Share::Mailbox)), "half, which nobody shares");
    let (stored, refused) = fill(&engine, Some("bob"), |_| a.clone(), "2").await;
    assert_eq!((stored, share_of(&refused)), (5, Some(Share::Mailbox)), "a quarter");
    let (stored, refused) = fill(&engine, Some("cid"), |_| a.clone(), "3").await;
    assert_eq!(stored, 3, "a tenth is kept for backends");
    assert!(matches!(refused, EngineError::MailboxFull { messages: 18, .. }), "{refused:?}");
    let (stored, refused) = fill(&engine, None, |_| a.clone(), "4").await;
    assert_eq!(stored, 2);
    assert!(matches!(refused, EngineError::MailboxFull { messages: 20, .. }), "{refused:?}");
    engine.append(paid(Some("ann"), &mailbox("B"), "5")).await.unwrap();
    // What is acknowledged is not paid for.
    engine.trim(&a, Seq(u64::MAX));
    assert_eq!(fill(&engine, Some("ann"), |_| a.clone(), "6").await.0, 10);
}

/// A retry of what is stored gets the first answer, whatever the author has stored since.
pub(super) async fn a_retry_is_known_though_the_share_is_taken(lab: Lab) {
    let (engine, _) = lab.engine_with(shared(&lab));
    let a = mailbox("A");
    let send = |id: &str| {
        let id = Some(MessageId::new(id).unwrap());
        engine.append(Append { id, ..paid(Some("ann"), &a, "0") })
    };
    let first = send("first").await.unwrap();
    assert_eq!(fill(&engine, Some("ann"), |_| a.clone(), "1").await.0, 9);
    assert_eq!(send("first").await, Ok(first));
    assert_eq!(share_of(&send("second").await.unwrap_err()), Some(Share::Mailbox));
    // What was refused is not remembered.
    engine.trim(&a, Seq(u64::MAX));
    assert!(send("second").await.unwrap() > first);
}

/// Nodes that share a mailbox count each other's messages, and what was acknowledged elsewhere, before they refuse.
#[cfg(feature = "nats")]
pub(super) async fn a_node_counts_what_others_stored_in_a_mailbox(lab: Lab) {
    let (one, _) = lab.engine_with(shared(&lab));
    let (two, _) = lab.open(shared(&lab));
    let a = mailbox("A");
    assert_eq!(fill(&one, Some("ann"), |_| a.clone(), "1").await.0, 10);
    // It counts after a sixteenth of the mailbox: one message.
    let (stored, refused) = fill(&two, Some("ann"), |_| a.clone(), "2").await;
    assert_eq!((stored, share_of(&refused)), (1, Some(Share::Mailbox)));
    assert_eq!(fill(&two, Some("bob"), |_| a.clone(), "3").await.0, 5);
    assert_eq!(fill(&one, Some("cid"), |_| a.clone(), "4").await.0, 2, "a tenth is kept for backends");
    two.trim(&a, Seq(u64::MAX));
    let sends = async {
        while one.append(paid(Some("ann"), &a, "5")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), sends).await.expect("there is room again");
}

#[cfg(feature = "nats")]
pub(super) async fn an_author_stores_its_share_of_a_store_that_is_half_full(lab: Lab) {
    let long = format!("\"{}\"", "x".repeat(10_000));
    let (engine, _) = lab.engine_with(Settings { total_bytes: 800_000, ..shared(&lab) });
    let to = |author: &'static str| move |n: usize| mailbox(&format!("{author}{}", n / 4));
    // Three quarters are for mailboxes: half of 600 kB, and a sixteenth of 800 kB.
    let (stored, refused) = fill(&engine, Some("ann"), to("a"), &long).await;
    assert_eq!(share_of(&refused), Some(Share::Stored), "{refused}");
    assert!((28..32).contains(&stored), "{stored}");
    let (stored, refused) = fill(&engine, Some("bob"), to("b"), &long).await;
    assert_eq!(share_of(&refused), Some(Share::Stored), "{refused}");
    assert!((3..6).contains(&stored), "{stored}");
    let clients =
        ["c", "d", "e", "f", "g"].map(async |name| fill(&engine, Some(name), to(name), &long).await);
    for client in clients {
        let (_, refused) = client.await;
        assert!(matches!(refused, EngineError::QuotaExceeded(_) | EngineError::StoreFull { limit: 720_000 }));
    }
    let refused = engine.append(paid(Some("h"), &mailbox("h"), &long)).await.unwrap_err();
    assert_eq!(refused, EngineError::StoreFull { limit: 720_000 });
    let (stored, refused) = fill(&engine, None, to("s"), &long).await;
    assert!((4..8).contains(&stored), "a tenth of 600 kB, not {stored}");
    assert_eq!(refused, EngineError::StoreFull { limit: 800_000 });
    // Histories have a stream of their own.
    engine.append(paid(Some("ann"), &topic("t"), &long)).await.unwrap();
}

pub(super) async fn an_author_takes_its_share_of_the_store_and_others_go_on(lab: Lab) {
    let long = format!("\"{}\"", "x".repeat(1000));
    let (engine, _) = lab.engine_with(Settings { total_bytes: 64_000, ..shared(&lab) });
    let to = |author: &'static str| move |n: usize| mailbox(&format!("{author}{}", n / 4));
    let (most, refused) = fill(&engine, Some("ann"), to("a"), &long).await;
    assert_eq!(share_of(&refused), Some(Share::Store), "{refused:?}");
    assert!((20..28).contains(&most), "half of the store: {most}");
    let (stored, refused) = fill(&engine, Some("bob"), to("b"), &long).await;
    assert!((1..5).contains(&stored) && share_of(&refused) == Some(Share::Store), "{stored} {refused:?}");
    // Topics are stored there too.
    let refused = engine.append(paid(Some("ann"), &topic("t"), &long)).await.unwrap_err();
    assert_eq!(share_of(&refused), Some(Share::Store));
    engine.append(paid(None, &mailbox("backend"), &long)).await.unwrap();
    // Others fill it, but for the tenth of the backends.
    let mut clients = 0;
    let refused = loop {
        let name = format!("c{clients}");
        match engine.append(paid(Some(&name), &mailbox(&name), &long)).await {
            Ok(_) => clients += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, EngineError::StoreFull { limit: 57_600 });
    let (stored, refused) = fill(&engine, None, to("s"), &long).await;
    assert!(stored > 3, "{stored}");
    assert_eq!(refused, EngineError::StoreFull { limit: 64_000 });
    for n in 0..most {
        engine.trim(&to("a")(n), Seq(u64::MAX));
    }
    engine.append(paid(Some("ann"), &mailbox("a"), &long)).await.unwrap();
}

pub(super) async fn an_author_has_messages_in_so_many_histories_at_most(lab: Lab) {
    let (engine, _) = lab.engine_with(shared(&lab));
    let name = |n: usize| topic(&format!("t{n}"));
    let appends = (0..MAX_TOPICS).map(|n| engine.append(paid(Some("ann"), &name(n), "1")));
    futures::future::try_join_all(appends.collect::<Vec<_>>()).await.unwrap();
    let one_more = || engine.append(paid(Some("ann"), &name(MAX_TOPICS), "1"));
    assert_eq!(one_more().await.unwrap_err(), EngineError::TooManyTopics { limit: MAX_TOPICS });
    engine.append(paid(Some("ann"), &name(7), "2")).await.unwrap();
    engine.append(paid(Some("bob"), &name(MAX_TOPICS), "1")).await.unwrap();
    engine.append(paid(None, &name(MAX_TOPICS), "1")).await.unwrap();
    // Others push its messages out of one history.
    for n in 0..5 {
        engine.append(paid(Some("bob"), &name(7), &n.to_string())).await.unwrap();
    }
    one_more().await.unwrap();
}

pub(super) async fn shares_are_counted_over_restarts(lab: Lab) {
    for crash in [false, true] {
        let settings = shared(&lab);
        let (mut engine, _) = lab.engine_with(settings);
        let (a, t) = (mailbox("A"), topic("t"));
        assert_eq!(fill(&engine, Some("ann"), |_| a.clone(), "1").await.0, 10);
        engine.append(paid(Some("ann"), &t, "1")).await.unwrap();
        engine = lab.again_with(settings, engine, crash);
        let refused = engine.append(paid(Some("ann"), &a, "2")).await.unwrap_err();
        assert_eq!(share_of(&refused), Some(Share::Mailbox));
        engine.append(paid(Some("bob"), &a, "2")).await.unwrap();
        // What nobody shares now is not counted.
        engine = lab.again_with(lab.settings(), engine, crash);
        let refused = engine.append(paid(None, &a, "3")).await.unwrap_err();
        assert!(matches!(refused, EngineError::MailboxFull { messages: 11, .. }), "{refused:?}");
    }
}
