//! What a reader gets: messages and gaps.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::message::{Publication, Seq};

/// Why a reader is told that messages between two positions are not coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// They were acknowledged, by this reader or another one of its session.
    Acknowledged,
    /// Their time to live ended, or a topic's history no longer reaches back.
    Expired,
    /// The cursor belongs to another incarnation of the store.
    Epoch,
    /// The store is damaged there.
    Lost,
}

impl GapReason {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Acknowledged, Self::Expired, Self::Epoch, Self::Lost];

    /// Its name on the wire.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged",
            Self::Expired => "expired",
            Self::Epoch => "epoch",
            Self::Lost => "lost",
        }
    }
}

/// Messages after `from`, up to and including `to`, are not coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Gap {
    /// The reader's cursor.
    pub from: Seq,
    /// Where reading goes on (exclusive).
    pub to: Seq,
    /// Why.
    pub reason: GapReason,
}

/// What a reader gets next.
#[derive(Debug, Clone)]
pub enum Item {
    /// A message.
    Message(Arc<Publication>),
    /// A hole that is not going to be filled.
    Gap(Gap),
}

impl Item {
    /// The position from which reading goes on after this item; `None` for a volatile message.
    #[must_use]
    pub fn seq(&self) -> Option<Seq> {
        match self {
            Self::Message(message) => message.seq(),
            Self::Gap(gap) => Some(gap.to),
        }
    }
}
