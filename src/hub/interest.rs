//! Which addresses are read here, for engines that subscribe to what they carry.

use std::fmt::Debug;

use crate::message::Address;

/// Is told which addresses are read on this node.
///
/// Of one address the calls alternate and come in order: [`Hubs`](crate::hub::Hubs) calls under its lock, before the
/// reader reads anything. So an implementation must not call the hubs, must not wait, and takes no lock that is held
/// elsewhere while the hubs are called. An engine that unsubscribes later than the last reader leaves sees a reader
/// that comes back in between as a call of [`Self::first_reader`].
pub trait Interest: Debug + Send + Sync {
    /// Somebody reads this address now.
    fn first_reader(&self, address: &Address);

    /// Nobody reads this address any more.
    fn last_reader_left(&self, address: &Address);
}
