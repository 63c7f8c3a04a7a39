use super::*;

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn client(user: Option<&str>, send: Option<&[&str]>, topics: Option<&str>) -> Grant {
    let user = user.map(|name| UserId::new(name).unwrap());
    let mut client = Client::new(session("A"), Handle([7; 16]), user, Proof::SessionId);
    client.send =
        send.map(|items| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>().try_into().unwrap());
    client.topics = topics.map(|topics| serde_json::from_str(topics).unwrap());
    Grant::Client(Arc::new(client))
}

fn backend(sessions: bool) -> Grant {
    let (name, key_digest) = ("shop".into(), [0; 32]);
    Grant::Backend(Arc::new(Backend {
        name,
        from: None,
        send: None,
        topics: None,
        presence: None,
        sessions,
        ops: false,
        mailbox: None,
        key_digest,
    }))
}

fn backend_of(grant: &Grant) -> Backend {
    match grant {
        Grant::Backend(backend) => (**backend).clone(),
        other => panic!("{other:?}"),
    }
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

#[test]
fn a_client_without_lists_sends_to_all_but_topics_and_reads_no_topic() {
    let grant = client(Some("ann"), None, None);
    grant.may_send(&To::Session(session("B"))).unwrap();
    grant.may_send(&To::User(UserId::new("bob").unwrap())).unwrap();
    let denied = grant.may_send(&To::Topic(topic("news"))).unwrap_err();
    assert!(denied.0.contains("`topic:news`"), "{denied}");
    assert!(grant.may_read(&topic("news")).unwrap_err().0.contains("of the token"));
}

#[test]
fn a_client_needs_a_pattern_to_send_to_a_backend() {
    let shop = To::Backend(BackendName::new("shop").unwrap());
    let denied = client(Some("ann"), None, None).may_send(&shop).unwrap_err();
    assert!(denied.0.contains("`backend:shop`"), "{denied}");
    for (item, allowed) in [("backend:shop", true), ("backend:*", true), ("*", true), ("user:*", false)] {
        assert_eq!(client(None, Some(&[item]), None).may_send(&shop).is_ok(), allowed, "{item}");
    }
    backend(false).may_send(&shop).unwrap();
    Grant::Open { session: None, manages: false }.may_send(&shop).unwrap();
}

#[test]
fn lists_decide_where_they_are_given() {
    let grant = client(Some("ann"), Some(&["topic:news"]), Some(r#"["room/*"]"#));
    grant.may_send(&To::Topic(topic("news"))).unwrap();
    assert!(grant.may_send(&To::Session(session("B"))).is_err());
    grant.may_read(&topic("room/1")).unwrap();
    assert!(grant.may_read(&topic("news")).is_err());
}

#[test]
fn who_reads_a_topic_is_shown_to_those_whose_list_says_so() {
    let presence = |list: Option<&str>| list.map(|list| serde_json::from_str(list).unwrap());
    let client = |list| {
        let client = Client::new(session("A"), Handle([7; 16]), None, Proof::SessionId);
        Grant::Client(Arc::new(Client { presence: presence(list), ..client }))
    };
    let backend =
        |list| Grant::Backend(Arc::new(Backend { presence: presence(list), ..backend_of(&backend(true)) }));
    let news = topic("news");
    for (grant, allowed) in [
        (client(None), false),
        (client(Some(r#"["room/*"]"#)), false),
        (client(Some(r#"["news"]"#)), true),
        (backend(None), true),
        (backend(Some("[]")), false),
        (Grant::Open { session: None, manages: false }, true),
    ] {
        match grant.may_see_members(&news) {
            Ok(()) => assert!(allowed, "{grant:?}"),
            Err(denied) => {
                assert!(!allowed && denied.0.contains("`presence` list"), "{grant:?}: {denied}")
            }
        }
    }
}

#[test]
fn members_are_sessions_with_the_name_that_receivers_see() {
    let member = |grant: Grant| grant.member().map(|name| name.as_str().to_owned());
    assert_eq!(member(client(Some("ann"), None, None)).as_deref(), Some("ann"));
    assert_eq!(member(client(None, None, None)), Some(Handle([7; 16]).to_string()));
    assert_eq!(member(Grant::Open { session: Some(session("A")), manages: false }).as_deref(), Some("A"));
    assert_eq!(member(Grant::Open { session: None, manages: false }), None);
    let named = Backend { from: SenderName::new("shop").ok(), ..backend_of(&backend(true)) };
    assert_eq!(member(Grant::Backend(Arc::new(named))), None);
}

#[test]
fn a_backend_without_lists_may_do_everything() {
    let grant = backend(true);
    grant.may_send(&To::Topic(topic("news"))).unwrap();
    grant.may_read(&topic("news")).unwrap();
    grant.may_manage().unwrap();
    assert!(backend(false).may_manage().unwrap_err().0.contains("sessions = false"));
}

#[test]
fn in_open_mode_only_managing_is_restricted() {
    let open = |manages| Grant::Open { session: Some(session("A")), manages };
    open(false).may_send(&To::Topic(topic("news"))).unwrap();
    open(false).may_read(&topic("news")).unwrap();
    open(true).may_manage().unwrap();
    assert!(open(false).may_manage().is_err());
    assert!(client(Some("ann"), None, None).may_manage().is_err());
}

#[test]
fn receivers_see_a_session_id_in_open_mode_only() {
    let from = |grant: &Grant| grant.from().map(|name| name.as_str().to_owned());
    let open = Grant::Open { session: Some(session("A")), manages: false };
    assert_eq!(from(&open).as_deref(), Some("A"));
    assert_eq!(from(&client(Some("ann"), None, None)).as_deref(), Some("ann"));
    assert_eq!(from(&client(None, None, None)), Some(Handle([7; 16]).to_string()));
    assert_eq!(from(&backend(true)), None);
    assert_eq!((backend(true).kind(), open.kind()), (Kind::FromBackend, Kind::Message));
}

#[test]
fn authors_are_sessions_backends_or_anonymous() {
    assert_eq!(client(None, None, None).author(), Author::Session(session("A")));
    assert_eq!(backend(true).author(), Author::Backend("shop".into()));
    assert_eq!(Grant::Open { session: None, manages: false }.author(), Author::Anonymous);
}

#[test]
fn users_and_sessions_without_a_user_pay_and_nobody_else_does() {
    let payer = |grant: Grant| grant.payer().map(|name| name.as_str().to_owned());
    assert_eq!(payer(client(Some("ann"), None, None)).as_deref(), Some("ann"));
    assert_eq!(payer(client(None, None, None)), Some(Handle([7; 16]).to_string()));
    assert_eq!(payer(backend(true)), None);
    assert_eq!(payer(Grant::Open { session: Some(session("A")), manages: false }), None);
}

#[test]
fn a_proof_is_accepted_until_clocks_can_have_passed_it() {
    let expiry = TokenExpiry { at: 5_000 };
    assert_eq!(expiry.accepted_until(), 35_000);
    assert_eq!(expiry.accepted_for(34_000), Duration::from_secs(1));
    assert_eq!(expiry.accepted_for(36_000), Duration::ZERO);
}
