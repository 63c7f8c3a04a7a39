//! The shards of the index, and their locks.
//!
//! Each address has one shard, and with it one order. Threads that use different addresses rarely wait for each other.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::engine::embedded::index::backing::Backing;
use crate::engine::embedded::index::intake::Breaker;
use crate::engine::embedded::index::logs::AddressLogs;
use crate::engine::embedded::index::noted::SHARDS;
use crate::message::{Address, Seq};
use crate::sync::Padded;

/// What is known of the addresses of one shard.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) logs: AddressLogs,
    pub(super) backing: Backing,
    /// The newest seq of this shard that is committed or refused, with a disk.
    pub(super) committed: Seq,
}

/// All shards.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Box<[Padded<Mutex<Shard>>]>,
    breaker: Arc<Breaker>,
}

/// A locked shard. A panic while it is locked breaks the store.
#[derive(Debug)]
pub(super) struct ShardGuard<'a> {
    shard: MutexGuard<'a, Shard>,
    breaker: &'a Breaker,
    was_panicking: bool,
}

impl Shards {
    pub(super) fn new(make: impl Fn() -> Shard, breaker: Arc<Breaker>) -> Self {
        Self { shards: (0..SHARDS).map(|_| Padded::new(Mutex::new(make()))).collect(), breaker }
    }

    /// Locks the shard of an address; `None` once a panic has broken the store.
    pub(super) fn lock(&self, address: &Address) -> Option<ShardGuard<'_>> {
        self.lock_at(address.shard(SHARDS))
    }

    /// Locks a shard by its number.
    pub(super) fn lock_at(&self, at: usize) -> Option<ShardGuard<'_>> {
        let shard = self.shards[at].lock();
        let was_panicking = std::thread::panicking();
        match shard {
            Ok(shard) if !self.breaker.is_broken() => {
                Some(ShardGuard { shard, breaker: &self.breaker, was_panicking })
            }
            Ok(_) => None,
            Err(_) => {
                self.breaker.trip();
                self.breaker.is_broken();
                None
            }
        }
    }

    /// Locks the shard of an address, and that of another one, in the order that everybody uses.
    pub(super) fn lock_both(&self, address: &Address, other: Option<&Address>) -> Option<Held<'_>> {
        let at = address.shard(SHARDS);
        let other = other.map(|other| other.shard(SHARDS)).filter(|other| *other != at);
        Some(match other {
            None => Held { own: self.lock_at(at)?, other: None },
            Some(before) if before < at => {
                let other = Some(self.lock_at(before)?);
                Held { own: self.lock_at(at)?, other }
            }
            Some(behind) => {
                let own = self.lock_at(at)?;
                Held { own, other: Some(self.lock_at(behind)?) }
            }
        })
    }

    /// Locks each shard in turn.
    pub(super) fn each(&self) -> impl Iterator<Item = ShardGuard<'_>> {
        (0..SHARDS).map_while(|at| self.lock_at(at))
    }

    /// Locks all shards at once, for a change that concerns several addresses.
    pub(super) fn lock_all(&self) -> Option<All<'_>> {
        (0..SHARDS).map(|at| self.lock_at(at)).collect::<Option<Vec<_>>>().map(All)
    }
}

/// The locked shard of an address, and that of the mailbox that gets its receipt, if that is another one.
#[derive(Debug)]
pub(super) struct Held<'a> {
    pub(super) own: ShardGuard<'a>,
    other: Option<ShardGuard<'a>>,
}

impl Held<'_> {
    /// The logs where the mailbox is that gets the receipt.
    pub(super) fn receiver(&self) -> &AddressLogs {
        &self.other.as_ref().unwrap_or(&self.own).logs
    }
}

/// All shards, locked.
#[derive(Debug)]
pub(super) struct All<'a>(Vec<ShardGuard<'a>>);

impl All<'_> {
    /// The shard of an address.
    pub(super) fn of(&self, address: &Address) -> &Shard {
        &self.0[address.shard(SHARDS)]
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Shard> {
        self.0.iter().map(|shard| &**shard)
    }

    /// The shard of an address.
    pub(super) fn of_mut(&mut self, address: &Address) -> &mut Shard {
        &mut self.0[address.shard(SHARDS)]
    }
}

impl Deref for ShardGuard<'_> {
    type Target = Shard;

    fn deref(&self) -> &Shard {
        &self.shard
    }
}

impl DerefMut for ShardGuard<'_> {
    fn deref_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }
}

impl Drop for ShardGuard<'_> {
    fn drop(&mut self) {
        if !self.was_panicking && std::thread::panicking() {
            self.breaker.trip();
        }
    }
}
