//! What the watchers of a topic were told, and how that differs from its members now.

use std::collections::BTreeSet;

use crate::hub::MemberPage;
use crate::message::SenderName;

/// Most members of a topic that are told by name.
pub(in crate::broker) const MOST_NAMED: usize = 1000;

/// How the members of a topic have changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) count: usize,
    /// Who joined, and who left. `None` if the watchers have to read the list, or there are too many members for one.
    pub(super) names: Option<(Vec<SenderName>, Vec<SenderName>)>,
}

/// What the watchers of a topic were told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// How many members; `None` before the first watcher was told.
    count: Option<usize>,
    /// Their names. `None` if there were too many, or if the watchers have to read the list.
    names: Option<BTreeSet<SenderName>>,
    /// Whose membership was shown to somebody as it was between two events. The next event says how it is, also if it is
    /// again as in the event before.
    exposed: BTreeSet<SenderName>,
    /// Whether the number of members was shown to somebody as it was between two events.
    is_exposed: bool,
}

/// The names, if these are all.
fn all_names(page: &MemberPage) -> Option<BTreeSet<SenderName>> {
    (page.count <= MOST_NAMED).then(|| page.members.iter().cloned().collect())
}

impl Told {
    /// How many members the watchers were told.
    pub(super) fn count(&self) -> usize {
        self.count.unwrap_or_default()
    }

    /// Whether somebody was shown another state than that of the last event.
    pub(super) fn is_exposed(&self) -> bool {
        self.is_exposed
    }

    /// Notes that somebody is shown the members as they are now.
    pub(super) fn show(&mut self, now: &MemberPage) {
        let names = all_names(now);
        if self.count.is_none() {
            (self.count, self.names) = (Some(now.count), names);
            return;
        }
        self.is_exposed |= self.count != Some(now.count);
        if let (Some(told), Some(now)) = (&self.names, &names) {
            self.exposed.extend(told.symmetric_difference(now).cloned());
            self.is_exposed |= !self.exposed.is_empty();
        }
        if self.exposed.len() > MOST_NAMED {
            self.names = None;
        }
    }

    /// What the watchers are told now; `None` if there is nothing to tell.
    pub(super) fn tell(&mut self, now: &MemberPage) -> Option<Change> {
        let (count, names) = (now.count, all_names(now));
        let exposed = std::mem::take(&mut self.exposed);
        let was_exposed = std::mem::take(&mut self.is_exposed);
        let (told_count, told) = (self.count.replace(count), std::mem::replace(&mut self.names, names));
        // Nobody was told anything yet: who comes is told this.
        told_count?;
        let changed = match (&told, &self.names) {
            (Some(told), Some(now)) => {
                let joined = now.iter().filter(|name| !told.contains(*name) || exposed.contains(*name));
                let left = told.union(&exposed).filter(|name| !now.contains(*name));
                Some((joined.cloned().collect::<Vec<_>>(), left.cloned().collect::<Vec<_>>()))
            }
            _ => None,
        };
        let named = |(joined, left): &(Vec<_>, Vec<_>)| joined.len() + left.len();
        let is_changed = match &changed {
            Some(changed) => named(changed) > 0,
            // Above the limit only the number counts. Where the list is known again, it has to be read.
            None => told_count != Some(count) || was_exposed || self.names.is_some(),
        };
        is_changed.then(|| Change { count, names: changed.filter(|changed| named(changed) <= MOST_NAMED) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(names: &[&str]) -> MemberPage {
        let members: Vec<_> = names.iter().map(|name| SenderName::new(name).unwrap()).collect();
        MemberPage { count: members.len(), members }
    }

    fn crowd(count: usize) -> MemberPage {
        let names = (0..count.min(MOST_NAMED)).map(|n| SenderName::new(&format!("n{n}")).unwrap());
        MemberPage { count, members: names.collect() }
    }

    /// A change as text, like `2 +ann -bob`.
    fn text(change: Option<Change>) -> String {
        let Some(Change { count, names }) = change else { return String::new() };
        let Some((joined, left)) = names else { return format!("{count} ?") };
        let signed = |sign: char| move |name: SenderName| format!(" {sign}{name}");
        let joined = joined.into_iter().map(signed('+'));
        format!("{count}{}", joined.chain(left.into_iter().map(signed('-'))).collect::<String>())
    }

    fn shown(names: &[&str]) -> Told {
        let mut told = Told::default();
        told.show(&page(names));
        told
    }

    #[test]
    fn a_change_is_what_differs_from_what_was_told() {
        let mut told = shown(&["ann"]);
        assert_eq!(text(told.tell(&page(&["ann"]))), "", "joined and left again");
        assert_eq!(text(told.tell(&page(&["ann", "bob", "cid"]))), "3 +bob +cid");
        assert_eq!(text(told.tell(&page(&["bob", "dan"]))), "2 +dan -ann -cid");
        assert_eq!(text(told.tell(&page(&["bob", "dan"]))), "");
        assert_eq!(told.count(), 2);
    }

    #[test]
    fn nothing_is_told_before_the_first_watcher_knows_the_members() {
        let mut told = Told::default();
        assert_eq!(text(told.tell(&page(&["ann"]))), "");
        assert_eq!(text(told.tell(&page(&["ann", "bob"]))), "2 +bob");
    }

    #[test]
    fn what_somebody_was_shown_in_between_is_set_right() {
        let mut told = shown(&["ann"]);
        // One who comes sees bob, and does not see ann, who is away for a moment.
        told.show(&page(&["bob"]));
        assert!(told.is_exposed());
        assert_eq!(text(told.tell(&page(&["ann"]))), "1 +ann -bob");
        assert!(!told.is_exposed());
        assert_eq!(text(told.tell(&page(&["ann"]))), "");
        // What is shown as it was told needs no event.
        told.show(&page(&["ann"]));
        assert!(!told.is_exposed());
    }

    #[test]
    fn above_the_limit_only_the_number_is_told() {
        let mut told = Told::default();
        told.show(&crowd(MOST_NAMED));
        assert_eq!(text(told.tell(&crowd(MOST_NAMED + 1))), "1001 ?");
        assert_eq!(text(told.tell(&crowd(MOST_NAMED + 1))), "", "others, but as many");
        assert_eq!(text(told.tell(&crowd(5000))), "5000 ?");
        // Those who watch read the list now.
        assert_eq!(text(told.tell(&crowd(3))), "3 ?");
        assert_eq!(text(told.tell(&page(&["n0", "n1"]))), "2 -n2");
    }

    #[test]
    fn a_change_of_too_many_names_has_none() {
        let mut told = shown(&[]);
        assert_eq!(text(told.tell(&crowd(MOST_NAMED))).split(' ').count(), 1001);
        let others: Vec<String> = (0..MOST_NAMED).map(|n| format!("o{n}")).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        assert_eq!(text(told.tell(&page(&others))), "1000 ?");
        assert_eq!(text(told.tell(&page(&others[1..]))), "999 -o0");
    }

    #[test]
    fn what_is_exposed_is_bounded() {
        let mut told = shown(&["ann"]);
        for round in 0..4 {
            let names: Vec<String> = (0..400).map(|n| format!("r{round}-{n}")).collect();
            told.show(&page(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        assert!(told.exposed.len() < 3 * MOST_NAMED);
        assert_eq!(text(told.tell(&page(&["ann"]))), "1 ?", "the list has to be read");
    }
}
