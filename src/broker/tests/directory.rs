//! Ids as proofs.

use super::*;

#[tokio::test]
async fn only_a_backends_registration_makes_an_id_a_proof() {
    let (broker, clock) = broker(true);
    let (a, b) = (session("A"), session("B"));
    broker.register_from_token(&a, &user("ann"), (TTL, 0)).decided().await.unwrap();
    assert!(broker.directory().holder(&a, IdScope::X0).await.is_none());
    assert_eq!(broker.directory().registration(&a).await.unwrap().source, RegistrationSource::Token);
    let waiting = tokio::spawn({
        let (broker, b) = (broker.clone(), b.clone());
        async move { broker.directory().arrival(&b).await }
    });
    tokio::task::yield_now().await;
    broker.register(&b, Some(user("bob")), TTL / 2, false).await.unwrap();
    let holder = waiting.await.unwrap();
    assert_eq!((holder.session.clone(), holder.user.clone()), (b.clone(), Some(user("bob"))));
    assert_eq!(holder.proof, Proof::SessionId);
    // A token prolongs the registration, and not for how long the id is a proof.
    broker.register_from_token(&b, &user("bob"), (TTL, 0)).decided().await.unwrap();
    clock.advance(TTL / 2);
    assert!(broker.directory().holder(&b, IdScope::X0).await.is_none());
    assert_eq!(broker.directory().user_of(&b).await, Some(user("bob")));
    assert_eq!(broker.directory().sessions_of(&user("bob")).await, [b]);
}

#[tokio::test]
async fn only_a_registration_with_proof_makes_an_id_a_proof_everywhere() {
    let (broker, clock) = broker(true);
    let (a, ann) = (session("A"), user("ann"));
    let everywhere = async || broker.directory().holder(&a, IdScope::Everywhere).await;
    broker.register(&a, Some(ann.clone()), TTL / 2, false).await.unwrap();
    assert!(everywhere().await.is_none() && !broker.directory().id_left(&a, IdScope::X0).is_zero());
    broker.register(&a, None, TTL / 2, true).await.unwrap();
    let holder = everywhere().await.unwrap();
    assert_eq!((&holder.session, &holder.user, holder.proof), (&a, &Some(ann.clone()), Proof::SessionId));
    // A token changes neither that nor how long it lasts.
    broker.register_from_token(&a, &ann, (TTL, 0)).decided().await.unwrap();
    assert_eq!(broker.directory().proof_left(&holder), TTL / 2);
    clock.set(clock.now() + 86_400_000);
    assert_eq!(broker.directory().proof_left(&holder), TTL / 2, "a clock that is set ends no proof");
    clock.advance(TTL / 4);
    broker.register(&a, None, TTL, true).await.unwrap();
    assert_eq!(broker.directory().proof_left(&holder), TTL, "the backend prolongs it");
    broker.register(&a, None, TTL, false).await.unwrap();
    assert!(everywhere().await.is_none() && broker.directory().proof_left(&holder).is_zero());
    broker.register(&a, None, TTL, true).await.unwrap();
    clock.advance(TTL);
    assert!(everywhere().await.is_none() && broker.directory().proof_left(&holder).is_zero());
    broker.register(&a, Some(user("bob")), TTL, true).await.unwrap();
    assert!(everywhere().await.is_some() && broker.directory().proof_left(&holder).is_zero());
    let (open, _) = self::broker(false);
    open.register(&a, None, TTL, true).await.unwrap();
    assert!(open.directory().holder(&a, IdScope::Everywhere).await.is_none(), "ids are public there");
}
