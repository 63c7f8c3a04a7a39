//! `/v1` for senders, backends and operators: messages, acknowledgements, sessions, users, backends and topics.

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge::Gateway;

mod backends;
mod history;
mod lists;
mod messages;
mod page;
mod path;
mod sessions;
mod topics;

pub(crate) use messages::{ack_small, send_small};
pub(crate) use path::{PathId, session_named};

/// The routes, with their description.
pub(crate) fn routes(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::default()
        .routes(routes!(messages::send))
        .routes(routes!(messages::ack))
        .routes(routes!(sessions::register, sessions::look_up, sessions::end))
        .routes(routes!(lists::sessions))
        .routes(routes!(sessions::look_up_user))
        .routes(routes!(lists::users))
        .routes(routes!(topics::list))
        .routes(routes!(topics::look_up))
        .routes(routes!(topics::presence))
        .routes(routes!(history::read))
        .routes(routes!(backends::look_up))
        .with_state(gateway)
}
