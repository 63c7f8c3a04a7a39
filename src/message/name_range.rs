//! Parts of lists of names: what begins with a prefix, after the last name of the page before.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::ops::Bound;

/// The names that begin with a prefix and come after another name.
#[derive(Debug, Clone, Copy, Default)]
pub struct NameRange<'a> {
    /// What the names begin with; empty for all.
    pub prefix: &'a str,
    /// The last name of the page before.
    pub after: Option<&'a str>,
}

impl NameRange<'_> {
    /// Whether a name is in it.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.after.is_none_or(|after| name > after) && name.starts_with(self.prefix)
    }

    /// The first `limit` names of a set that are in it.
    #[must_use]
    pub(crate) fn first_of<N>(&self, names: &BTreeSet<N>, limit: usize) -> Vec<N>
    where
        N: Borrow<str> + Ord + Clone,
    {
        self.names_of(names).take(limit).cloned().collect()
    }

    /// The names of a set that are in it, in their order.
    pub(crate) fn names_of<'n, N>(&self, names: &'n BTreeSet<N>) -> impl Iterator<Item = &'n N>
    where
        N: Borrow<str> + Ord,
    {
        let start = match self.after {
            Some(after) if after >= self.prefix => Bound::Excluded(after),
            _ => Bound::Included(self.prefix),
        };
        let names = names.range::<str, _>((start, Bound::Unbounded));
        names.take_while(|name| (*name).borrow().starts_with(self.prefix))
    }
}

/// The first names of a range, of names that come in any order. It holds no more of them than are wanted.
#[derive(Debug)]
pub(crate) struct FirstNames<'a, N> {
    range: NameRange<'a>,
    limit: usize,
    names: BTreeSet<N>,
}

impl<'a, N: Borrow<str> + Ord + Clone> FirstNames<'a, N> {
    /// The first `limit` names of this range; none yet.
    pub(crate) fn new(range: NameRange<'a>, limit: usize) -> Self {
        Self { range, limit, names: BTreeSet::new() }
    }

    /// Notes a name. It may come several times.
    pub(crate) fn offer(&mut self, name: &N) {
        let is_full = self.names.len() >= self.limit;
        if is_full && self.names.last().is_none_or(|last| name >= last) || !self.range.contains(name.borrow())
        {
            return;
        }
        self.names.insert(name.clone());
        if self.names.len() > self.limit {
            self.names.pop_last();
        }
    }

    /// Notes all these names.
    pub(crate) fn extend(&mut self, names: impl IntoIterator<Item = N>) {
        names.into_iter().for_each(|name| self.offer(&name));
    }

    /// The names, in their order.
    pub(crate) fn into_names(self) -> Vec<N> {
        self.names.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::UserId;

    fn names(names: &[&str]) -> BTreeSet<UserId> {
        names.iter().map(|name| UserId::new(name).unwrap()).collect()
    }

    /// The page of a set, and that of the same names in another order, which are equal.
    fn page(range: NameRange<'_>, limit: usize) -> Vec<String> {
        let all = names(&["a", "b1", "b2", "b3", "c", "bä"]);
        let first = range.first_of(&all, limit);
        let mut unsorted = FirstNames::new(range, limit);
        unsorted.extend(all.iter().rev().cloned());
        unsorted.extend(all.iter().cloned());
        assert_eq!(unsorted.into_names(), first, "{range:?}");
        first.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_page_begins_after_the_one_before_and_stays_in_its_prefix() {
        let range = |prefix, after| NameRange { prefix, after };
        assert_eq!(page(range("", None), 9), ["a", "b1", "b2", "b3", "bä", "c"]);
        assert_eq!(page(range("", None), 2), ["a", "b1"]);
        assert_eq!(page(range("", Some("b1")), 2), ["b2", "b3"]);
        assert_eq!(page(range("b", None), 2), ["b1", "b2"]);
        assert_eq!(page(range("b", Some("b2")), 9), ["b3", "bä"]);
        assert_eq!(page(range("b", Some("a")), 1), ["b1"], "a name before the prefix");
        assert_eq!(page(range("b", Some("c")), 9), [""; 0]);
        assert_eq!(page(range("b", Some("b11")), 1), ["b2"], "the name has gone since");
        assert_eq!(page(range("x", None), 9), [""; 0]);
        assert_eq!(page(range("", None), 0), [""; 0]);
    }
}
