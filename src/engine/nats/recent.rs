//! What this node stored lately. A copy of a stream that is behind may not have it yet.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::message::{Address, Seq};
use crate::sync::lock;

/// The newest seqs that this node stored, of two generations.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<[HashMap<Address, Seq>; 2]>);

impl Recent {
    /// Notes a seq that this node stored.
    pub(super) fn note(&self, address: &Address, seq: Seq) {
        let [young, _] = &mut *lock(&self.0);
        let known = young.entry(address.clone()).or_default();
        *known = seq.max(*known);
    }

    /// The newest seq that this node stored here lately.
    pub(super) fn of(&self, address: &Address) -> Seq {
        let generations = lock(&self.0);
        generations.iter().filter_map(|known| known.get(address)).max().copied().unwrap_or_default()
    }

    /// Begins a generation, and forgets the last but one.
    pub(super) fn age(&self) {
        let [young, old] = &mut *lock(&self.0);
        *old = std::mem::take(young);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::SessionId;

    #[test]
    fn a_seq_is_known_for_two_generations() {
        let (recent, address) = (Recent::default(), Address::Session(SessionId::new("A").unwrap()));
        recent.note(&address, Seq(5));
        recent.note(&address, Seq(4));
        recent.age();
        assert_eq!(recent.of(&address), Seq(5));
        recent.age();
        assert_eq!(recent.of(&address), Seq::START);
    }
}
