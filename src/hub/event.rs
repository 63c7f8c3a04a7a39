//! What goes through a hub.

use std::sync::Arc;

use crate::message::{Publication, Seq};

/// What goes through a hub.
#[derive(Debug, Clone)]
pub enum HubEvent {
    /// A stored message.
    Stored {
        /// The seq that the address had before, [`Seq::START`] if it held nothing.
        prev: Seq,
        /// The message.
        publication: Arc<Publication>,
    },
    /// A message that is not stored.
    Volatile(Arc<Publication>),
    /// The engine has something up to this seq: see [`crate::hub::Hubs::wake`].
    Available(Seq),
    /// The store begins anew: see [`crate::hub::Hubs::change_epoch`].
    EpochChanged,
    /// The address has ended: see [`crate::hub::Hubs::end`].
    Ended(EndReason),
}

/// Why the readers of an address end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The session was ended.
    SessionEnded,
    /// The session has another owner now. Readers that may read for that owner come back.
    OwnerChanged,
}
