//! What all transports share: authentication, parts of a request within limits, and refusals.

mod address;
mod answer;
mod authenticate;
mod body;
mod caller;
mod gateway;
mod head;
mod headers;
mod host;
mod operator;
mod origin;
mod proof;
mod query;
mod refusal;
mod refusal_log;
mod topic;

pub(crate) use address::{Peer, client_address, client_behind_proxy};
pub(crate) use answer::{encode, json, json_line, with_frames};
pub(crate) use authenticate::{ApiRequest, SessionPolicy};
pub(crate) use body::{BodyBounds, BodyLimit};
pub(crate) use caller::Caller;
pub(crate) use gateway::Gateway;
pub(crate) use head::RequestHead;
pub(crate) use headers::{Headers, text};
pub(crate) use host::{ServedHosts, plain_host};
pub(crate) use operator::Operator;
pub(crate) use origin::{OriginCheck, acknowledgement_refused, origin_refused};
pub(crate) use proof::{NamedSession, Proved, Shown};
pub(crate) use query::Query;
pub(crate) use refusal::{ErrorBody, Refused};
pub(crate) use refusal::{ErrorFields, Refusal};
pub(crate) use refusal_log::{RefusalNote, log_refusal};
pub(crate) use topic::TopicRequest;
