use super::*;
use crate::engine::embedded::dedup::ContentHash;

const LIMITS: IdLimits = limits(9, 9);

const fn limits(all: usize, of_author: usize) -> IdLimits {
    IdLimits { all, of_author, hard: 4 * all }
}

fn key(n: u32) -> DedupKey {
    DedupKey::from_bytes([n.to_le_bytes(); 4].concat().try_into().unwrap())
}

fn of(author: u8, n: u32) -> SendId {
    let author = AuthorKey::from_bytes([author; 4]);
    SendId { key: key(n), content: ContentHash::from_bytes([7; 8]), author }
}

fn id(n: u32) -> SendId {
    of(1, n)
}

fn seq(dedup: &mut Dedup, n: u32, now: u64) -> Option<Seq> {
    dedup.get(id(n), now).map(|(seq, _)| seq)
}

/// Which of these ids are remembered at time 0.
fn known(dedup: &mut Dedup, ids: impl IntoIterator<Item = u32>) -> Vec<u32> {
    ids.into_iter().filter(|n| seq(dedup, *n, 0) == Some(Seq(u64::from(*n)))).collect()
}

fn remember(dedup: &mut Dedup, author: u8, ids: impl IntoIterator<Item = u32>) {
    for n in ids {
        dedup.remember(of(author, n), Seq(n.into()), 0);
        check(dedup);
    }
}

/// The invariant.
fn check(dedup: &Dedup) {
    let in_groups = dedup.surplus.len() + dedup.authors.values().map(List::len).sum::<usize>();
    assert_eq!((dedup.by_time.len(), in_groups), (dedup.known.len(), dedup.known.len()));
    assert!(dedup.authors.values().all(|of_author| of_author.len() > 0));
    for (key, at) in &dedup.known {
        let entry = dedup.slots.get(*at);
        assert!(entry.key == *key && entry.state != State::Unused);
    }
}

#[test]
fn ids_are_remembered_for_the_window() {
    let mut dedup = Dedup::new(100, LIMITS);
    dedup.remember(id(1), Seq(1), 0);
    dedup.remember(id(2), Seq(2), 50);
    assert_eq!([1, 2].map(|n| seq(&mut dedup, n, 99)), [Some(Seq(1)), Some(Seq(2))]);
    assert_eq!([1, 2].map(|n| seq(&mut dedup, n, 100)), [None, Some(Seq(2))]);
    assert!(!dedup.forget(150, 9));
    assert!(dedup.known.is_empty() && dedup.authors.is_empty());
    check(&dedup);
}

#[test]
fn an_authors_last_ids_stay_however_many_others_send() {
    let mut dedup = Dedup::new(100, limits(10, 3));
    remember(&mut dedup, 1, 1..=2);
    remember(&mut dedup, 2, 100..=200);
    remember(&mut dedup, 1, 3..=5);
    assert_eq!(known(&mut dedup, 1..=5), [3, 4, 5], "its own surplus is the oldest");
    let flood = known(&mut dedup, 100..=200);
    assert_eq!((flood.len(), dedup.len()), (7, 10));
    assert_eq!(flood, (194..=200).collect::<Vec<_>>());
    check(&dedup);
}

#[test]
fn surplus_ids_stay_while_there_is_room() {
    let mut dedup = Dedup::new(100, limits(10, 3));
    remember(&mut dedup, 1, 1..=10);
    assert_eq!(known(&mut dedup, 1..=10).len(), 10);
    remember(&mut dedup, 2, [11]);
    assert_eq!(known(&mut dedup, 1..=11), (2..=11).collect::<Vec<_>>());
}

#[test]
fn all_authors_together_are_bounded() {
    let mut dedup = Dedup::new(100, limits(10, 3));
    for author in 1..=60 {
        remember(&mut dedup, author, [u32::from(author)]);
        dedup.forget(0, 9);
    }
    assert_eq!(known(&mut dedup, 1..=60), (21..=60).collect::<Vec<_>>(), "four times the number, the newest");
    assert_eq!(dedup.authors.len(), 40);
}

#[test]
fn ids_are_forgotten_in_slices_and_their_memory_is_given_back() {
    let limits = limits(100_000, 10);
    let mut dedup = Dedup::new(100, limits);
    (1..=5_000).for_each(|n| dedup.remember(of((n % 7) as u8, n), Seq(n.into()), 0));
    (5_001..=5_100).for_each(|n| dedup.remember(id(n), Seq(n.into()), 50));
    assert_eq!(
        [4_999, 5_100].map(|n| seq(&mut dedup, n, 100).is_some()),
        [true, true],
        "no more than a slice"
    );
    assert!(dedup.forget(100, 10));
    while dedup.forget(100, 64) {
        check(&dedup);
    }
    for _ in 0..100 {
        dedup.forget(100, 64);
    }
    check(&dedup);
    assert!(!dedup.slots.is_sparse(dedup.len()));
    for n in 5_001..=5_100 {
        assert_eq!(seq(&mut dedup, n, 149), Some(Seq(n.into())));
    }
    assert!(!dedup.forget(150, 200) && dedup.len() == 0);
}

#[test]
fn a_revoked_id_is_new_again_and_does_not_end_its_successor() {
    let mut dedup = Dedup::new(100, LIMITS);
    dedup.remember(id(1), Seq(1), 0);
    dedup.revoke(key(1));
    assert_eq!(seq(&mut dedup, 1, 0), None);
    dedup.remember(id(1), Seq(2), 50);
    assert_eq!(seq(&mut dedup, 1, 120), Some(Seq(2)), "the first time was over at 100");
    // For another owner of the mailbox the id is used again.
    dedup.remember(id(1), Seq(3), 120);
    assert_eq!(seq(&mut dedup, 1, 160), Some(Seq(3)));
    assert!(dedup.remembers(key(1), Seq(3)) && !dedup.remembers(key(1), Seq(2)));
    check(&dedup);
}

#[test]
fn a_known_id_with_other_content_is_no_retry() {
    let mut dedup = Dedup::new(100, LIMITS);
    dedup.remember(id(1), Seq(1), 0);
    let other = |n, content| SendId { content, ..id(n) };
    let another = ContentHash::from_bytes([8; 8]);
    assert_eq!(dedup.get(id(1), 0), Some((Seq(1), SameContent(true))));
    assert_eq!(dedup.get(other(1, another), 0), Some((Seq(1), SameContent(false))));
    assert_eq!(dedup.get(other(1, another), 100), None, "forgotten");
    dedup.restore(other(2, ContentHash::UNKNOWN), Seq(2), 300);
    let known = dedup.get(other(2, another), 200);
    assert_eq!(known, Some((Seq(2), SameContent(true))), "as format 1 stored it");
}
