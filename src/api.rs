//! `/v1` for senders and backends: messages, acknowledgements, sessions, users, backends, and who reads topics.

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge::Gateway;

mod backends;
mod messages;
mod path;
mod sessions;
mod topics;

pub(crate) use messages::{ack_small, send_small};

/// The routes, with their description.
pub(crate) fn routes(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::default()
        .routes(routes!(messages::send))
        .routes(routes!(messages::ack))
        .routes(routes!(sessions::register, sessions::look_up, sessions::end))
        .routes(routes!(sessions::look_up_user))
        .routes(routes!(topics::presence))
        .routes(routes!(backends::look_up))
        .with_state(gateway)
}
