//! Tests of the table of registrations.

use std::time::Duration;

use super::*;

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn register(name: &str, user: Option<&str>, ttl: u64, by: Registrar) -> Register {
    let user = user.map(|user| UserId::new(user).unwrap());
    Register { session: session(name), user, ttl: Duration::from_millis(ttl), by }
}

/// A token that says nothing about how long it is accepted.
const TOKEN: Registrar = Registrar::Token { until: 0 };

fn ended(user: Option<&str>, source: RegistrationSource, since: u64) -> Registration {
    let user = user.map(|user| UserId::new(user).unwrap());
    Registration { user, expires_at: 50, source, tokens_until: 0, since: Seq(since) }
}

fn table() -> RegistrationTable {
    RegistrationTable::new(Handles::new(&[7; 16]))
}

/// Plans a registration for a user who may have two sessions, and applies it.
fn apply(table: &mut RegistrationTable, register: &Register, now: u64) -> Result<bool, RegisterError> {
    let Some(change) = table.plan(register, (now, Seq(7)), 2, |other| other.as_str() == "connected")? else {
        return Ok(false);
    };
    if let Some((other, _)) = change.gives_way {
        table.set(&other, None);
    }
    table.set(&register.session, Some(change.registration));
    assert_consistent(table);
    Ok(true)
}

fn assert_consistent(table: &RegistrationTable) {
    let of_users: usize = table.users.values().map(BTreeSet::len).sum();
    let current = || table.sessions.values().filter(|known| known.registers());
    assert_eq!(of_users, current().filter(|known| known.user.is_some()).count());
    let listed: BTreeSet<_> =
        table.sessions.iter().map(|(name, known)| (known.expires_at, name.clone())).collect();
    assert_eq!(table.by_expiry, listed);
    assert_eq!(table.handles.len(), current().count());
    let users: BTreeSet<_> = table.users.keys().cloned().collect();
    assert_eq!(table.user_names, users);
}

#[test]
fn a_backend_sets_the_time_and_a_token_only_prolongs_it() {
    let mut table = table();
    let mut at = |ttl, by, now| {
        let changes = apply(&mut table, &register("A", Some("u"), ttl, by), now);
        (changes, table.get(&session("A"), now).unwrap().clone())
    };
    let (_, known) = at(1000, Registrar::Backend { proof: false }, 0);
    assert_eq!(known.source, RegistrationSource::Backend { until: 1000, proof: false });
    assert_eq!(at(500, TOKEN, 0).0, Ok(false), "it lasts longer already");
    let (_, known) = at(1000, TOKEN, 100);
    assert_eq!(
        (known.expires_at, known.source),
        (1225, RegistrationSource::Backend { until: 1000, proof: false })
    );
    assert_eq!(at(200, Registrar::Backend { proof: false }, 100).1.expires_at, 300, "a backend shortens it");
}

#[test]
fn a_session_of_one_user_is_not_given_to_another() {
    let mut table = table();
    apply(&mut table, &register("A", Some("u"), 1000, TOKEN), 0).unwrap();
    for by in [Registrar::Backend { proof: false }, TOKEN] {
        assert_eq!(apply(&mut table, &register("A", Some("v"), 1, by), 0), Err(RegisterError::Taken));
    }
    apply(&mut table, &register("A", None, 9000, Registrar::Backend { proof: false }), 0).unwrap();
    assert_eq!(table.get(&session("A"), 0).unwrap().user, Some(UserId::new("u").unwrap()));
    assert_eq!(apply(&mut table, &register("A", Some("v"), 1, TOKEN), 9000), Ok(true), "expired");
}

#[test]
fn a_revoked_session_comes_back_only_by_a_backend_or_after_its_time() {
    let mut table = table();
    table.set(&session("A"), Some(ended(None, RegistrationSource::Revoked, 0)));
    assert_consistent(&table);
    assert!(table.is_revoked(&session("A"), 49) && table.get(&session("A"), 49).is_none());
    let token = register("A", None, 1000, TOKEN);
    assert_eq!(apply(&mut table, &token, 49), Err(RegisterError::Ended));
    assert_eq!(
        apply(&mut table, &register("A", None, 10, Registrar::Backend { proof: false }), 49),
        Ok(true)
    );
    assert!(!table.is_revoked(&session("A"), 49));
    assert_eq!(apply(&mut table, &token, 50), Ok(true));
}

/// Up to where the former owner loses what waits, and what the registration says of that afterwards.
fn taken_over(table: &RegistrationTable, user: Option<&str>, by: Registrar) -> (Option<u64>, u64) {
    let change = table.plan(&register("A", user, 10, by), (60, Seq(7)), 2, |_| false).unwrap().unwrap();
    (change.takes_over.map(|seq| seq.0), change.registration.since.0)
}

#[test]
fn what_waits_is_for_its_owner_only() {
    let mut table = table();
    assert_eq!(taken_over(&table, Some("u"), TOKEN), (None, 0), "nobody had it");
    for (source, through) in [
        (RegistrationSource::Former { through: Seq(5) }, 5),
        // It expired a moment ago, and nobody has looked yet.
        (RegistrationSource::Backend { until: 50, proof: false }, 7),
        (RegistrationSource::Token, 7),
    ] {
        table.set(&session("A"), Some(ended(Some("u"), source, 3)));
        assert_eq!(table.get(&session("A"), 60), None);
        assert_consistent(&table);
        for by in [TOKEN, Registrar::Backend { proof: false }, Registrar::Anyone] {
            assert_eq!(taken_over(&table, Some("u"), by), (None, 3), "it comes back");
            assert_eq!(taken_over(&table, Some("v"), by), (Some(through), through), "{source:?} {by:?}");
            assert_eq!(taken_over(&table, None, by), (Some(through), through));
        }
        table.set(&session("A"), Some(ended(None, source, 3)));
        assert_eq!(taken_over(&table, Some("v"), TOKEN), (Some(through), through));
        assert_eq!(taken_over(&table, Some("v"), Registrar::Anyone), (None, 3), "names are free");
    }
    table.set(&session("A"), Some(ended(None, RegistrationSource::Revoked, 4)));
    assert_eq!(taken_over(&table, Some("v"), TOKEN), (Some(4), 4), "what came after the end stays");
}

#[test]
fn the_longest_token_is_known() {
    let mut table = table();
    let token = |until| register("A", Some("u"), 10, Registrar::Token { until });
    for (until, changes, known) in [(100, true, 100), (90, false, 100), (120, true, 120)] {
        assert_eq!(apply(&mut table, &token(until), 0), Ok(changes), "{until}");
        assert_eq!(table.get(&session("A"), 0).unwrap().tokens_until, known);
    }
    apply(&mut table, &register("A", None, 5, Registrar::Backend { proof: false }), 0).unwrap();
    assert_eq!(table.get(&session("A"), 0).unwrap().tokens_until, 120);
}

#[test]
fn the_oldest_unconnected_session_of_a_token_gives_way() {
    let mut table = table();
    let token = |name, ttl| register(name, Some("u"), ttl, TOKEN);
    apply(&mut table, &token("connected", 100), 0).unwrap();
    apply(&mut table, &token("B", 200), 0).unwrap();
    apply(&mut table, &token("C", 300), 0).unwrap();
    let user = UserId::new("u").unwrap();
    assert_eq!(table.sessions_of(&user, 0), [session("C"), session("connected")]);
    apply(&mut table, &register("C", Some("u"), 300, Registrar::Backend { proof: false }), 0).unwrap();
    assert_eq!(apply(&mut table, &token("D", 1), 0), Err(RegisterError::TooMany { limit: 2 }));
    assert_eq!(apply(&mut table, &token("C", 900), 0), Ok(true), "it is one of them");
}

#[test]
fn handles_lead_to_registered_sessions_only() {
    let mut table = table();
    let handle = Handles::new(&[7; 16]).of(&session("A"));
    assert_eq!(table.session_of(handle, 0), None);
    apply(&mut table, &register("A", None, 80, TOKEN), 0).unwrap();
    assert_eq!(table.session_of(handle, 0), Some(&session("A")));
    assert_eq!((table.session_of(handle, 90), table.ended(89)), (None, None));
    assert_eq!(table.ended(90), Some(session("A")));
    table.set(&session("A"), None);
    assert_consistent(&table);
    assert!(table.sessions.is_empty() && table.handles.is_empty());
}
