//! Tests of rates, permits of connections and proved addresses.

use super::*;

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

fn session(name: &str) -> RateKey {
    RateKey::Session(SessionId::new(name).unwrap())
}

#[test]
fn an_address_gets_no_more_permits_than_the_limit() {
    let limiter = ConnectionLimiter::new(2);
    let _first = limiter.try_acquire(ip("10.0.0.1")).unwrap();
    let _mapped = limiter.try_acquire(ip("::ffff:10.0.0.1")).unwrap();
    assert!(limiter.try_acquire(ip("10.0.0.1")).is_none(), "the IPv4-mapped address is the same address");
    assert!(limiter.try_acquire(ip("10.0.0.2")).is_some());
    assert_eq!(limiter.limit(), 2);
}

#[test]
fn an_ipv6_network_is_counted_as_one_address() {
    let limiter = ConnectionLimiter::new(1);
    let _permit = limiter.try_acquire(ip("fd00::1:0:0:0:1")).unwrap();
    assert!(limiter.try_acquire(ip("fd00::1:9:9:9:9")).is_none());
    assert!(limiter.try_acquire(ip("fd00::2:0:0:0:1")).is_some());
}

#[test]
fn an_unknown_address_and_an_unlimited_one_are_not_counted() {
    let limiter = ConnectionLimiter::new(1);
    let _unknown = [limiter.try_acquire(None).unwrap(), limiter.try_acquire(None).unwrap()];
    assert!(lock(&limiter.0.counts).is_empty());
    let unlimited = ConnectionLimiter::new(usize::MAX);
    let _permit = unlimited.try_acquire(ip("10.0.0.1")).unwrap();
    assert!(lock(&unlimited.0.counts).is_empty());
}

#[test]
fn a_dropped_permit_is_released_and_its_entry_removed() {
    let limiter = ConnectionLimiter::new(1);
    let permit = limiter.try_acquire(ip("10.0.0.1")).unwrap();
    drop(permit);
    assert!(lock(&limiter.0.counts).is_empty());
    assert!(limiter.try_acquire(ip("10.0.0.1")).is_some());
}

#[tokio::test]
async fn a_waiting_connection_gets_the_next_released_permit() {
    let limiter = ConnectionLimiter::new(1);
    let held = limiter.try_acquire(ip("10.0.0.1")).unwrap();
    let waiting = limiter.acquire(ip("10.0.0.1"));
    tokio::pin!(waiting);
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(held);
    let _permit = waiting.await.unwrap();
    assert!(limiter.try_acquire(ip("10.0.0.1")).is_none());
}

#[tokio::test]
async fn the_number_of_waiting_connections_is_bounded() {
    let limiter = ConnectionLimiter::new(1);
    let _held = limiter.try_acquire(ip("10.0.0.1")).unwrap();
    let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(limiter.acquire(ip("10.0.0.1")))).collect();
    for acquire in &mut waiting {
        assert!(futures::poll!(acquire).is_pending());
    }
    assert!(limiter.acquire(ip("10.0.0.1")).await.is_none());
    waiting.pop();
    let next = limiter.acquire(ip("10.0.0.1"));
    tokio::pin!(next);
    assert!(futures::poll!(&mut next).is_pending(), "a cancelled wait makes room for another one");
}

#[test]
fn the_places_without_a_permit_are_bounded() {
    let limiter = ConnectionLimiter::new(1).with_waiting(2);
    let first = limiter.try_extra().unwrap();
    let _second = limiter.try_extra().unwrap();
    assert!(limiter.try_extra().is_none());
    drop(first);
    assert!(limiter.try_extra().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_address_counts_as_proved_for_a_minute() {
    let proved = ProvedAddresses::default();
    assert!(!proved.contains(ip("10.0.0.1")) && !proved.contains(None));
    proved.note(ip("10.0.0.1"));
    proved.note(None);
    assert!(proved.contains(ip("::ffff:10.0.0.1")) && !proved.contains(ip("10.0.0.2")));
    proved.sweep();
    tokio::time::advance(PROVED_FOR - Duration::from_secs(1)).await;
    assert!(proved.contains(ip("10.0.0.1")));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!proved.contains(ip("10.0.0.1")));
    proved.sweep();
    assert!(lock(&proved.until).is_empty());
}

#[test]
fn a_sender_may_send_its_burst_and_then_waits() {
    let rates = Rates::new(Some((1, 3)), None);
    for _ in 0..3 {
        rates.charge(&session("A"), 1, 1).unwrap();
    }
    let TooFast { wait, of } = rates.charge(&session("A"), 1, 1).unwrap_err();
    assert!(wait <= Duration::from_secs(1) && !wait.is_zero(), "{wait:?}");
    assert!(of == Rated::Messages && rates.are_limited());
}

#[test]
fn the_rates_of_now_are_told() {
    let rates = Rates::new(Some((1, 3)), Some(1 << 20));
    assert_eq!(rates.in_a_second(), (Some(1), Some(1 << 20)));
    rates.set(Some((2, 3)), None);
    assert_eq!(rates.in_a_second(), (Some(2), None));
}

#[test]
fn senders_do_not_share_a_bucket() {
    let rates = Rates::new(Some((1, 1)), None);
    let user = RateKey::User(UserId::new("A").unwrap());
    let address = RateKey::Address("10.0.0.1".parse().unwrap());
    for key in [session("A"), session("B"), user, address] {
        rates.charge(&key, 1, 1).unwrap();
        rates.charge(&key, 1, 1).unwrap_err();
    }
}

#[test]
fn a_charge_is_at_least_one_token_and_at_most_a_full_bucket() {
    let rates = Rates::new(Some((1, 3)), None);
    rates.charge(&session("A"), 100, 1).unwrap();
    rates.charge(&session("A"), 0, 1).unwrap_err();
}

#[test]
fn bytes_are_counted_for_each_mailbox_and_ten_seconds_of_them_at_once() {
    let rates = Rates::new(None, Some(1 << 10));
    rates.charge(&session("A"), 4, 2 << 10).unwrap();
    rates.charge(&session("A"), 1, 2 << 10).unwrap();
    let TooFast { wait, of } = rates.charge(&session("A"), 1, 1).unwrap_err();
    assert!(of == Rated::Bytes && !wait.is_zero());
    rates.charge(&session("B"), 100, 1 << 20).unwrap();
    rates.charge(&session("B"), 1, 1).unwrap_err();
}

#[test]
fn without_a_limit_every_send_is_allowed() {
    for limit in [None, Some((0, 5)), Some((5, 0))] {
        let rates = Rates::new(limit, None);
        for _ in 0..100 {
            rates.charge(&session("A"), 1000, 1 << 30).unwrap();
        }
    }
}

#[test]
fn a_sweep_keeps_the_buckets_that_are_not_full() {
    let rates = Rates::new(Some((1, 2)), None);
    rates.charge(&session("A"), 2, 1).unwrap();
    rates.sweep();
    rates.charge(&session("A"), 1, 1).unwrap_err();
}
