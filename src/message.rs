//! What is sent: names, positions, and one committed message with its bytes.
//!
//! Nothing here knows about engines, hubs or transports. A [`Publication`] is encoded once. Every transport shares its
//! bytes by reference count.

mod address;
mod content;
mod item;
mod name;
mod name_range;
mod publication;
mod seq;
mod shared_text;

pub use address::{Address, Author};
pub use content::{Kind, Message, Outcome};
pub(crate) use content::{PresenceFields, ReceiptFields};
pub use item::{Gap, GapReason, Item};
pub use name::{BackendName, Handle, MessageId, NameError, SenderName, SessionId, TopicName, UserId};
pub(crate) use name::{MAX_NAME, taken_name};
pub(crate) use name_range::FirstNames;
pub use name_range::NameRange;
pub(crate) use publication::Draft;
pub use publication::Publication;
pub use seq::{Epoch, Seq};
pub(crate) use shared_text::SharedText;
