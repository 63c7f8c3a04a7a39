//! What all transports share: who makes a request, its parts within limits, and refusals.

mod address;
mod answer;
mod authenticate;
mod body;
mod caller;
mod gateway;
mod origin;
mod query;
mod refusal;

pub use address::{Peer, client_address, peer_of};
pub use answer::{encode, json};
pub use authenticate::{ApiRequest, SessionPolicy, bearer};
pub use body::body_text;
pub use caller::Caller;
pub use gateway::Gateway;
pub use origin::{OriginCheck, origin_refused};
pub use query::Query;
pub(crate) use refusal::{ErrorBody, Refused};
pub use refusal::{ErrorFields, Refusal};
