//! `/v1` for senders and backends: messages, acknowledgements, sessions and users.

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge::Gateway;

mod messages;
mod sessions;

/// The routes, with their description.
pub(crate) fn routes(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::default()
        .routes(routes!(messages::send))
        .routes(routes!(messages::ack))
        .routes(routes!(sessions::register, sessions::look_up, sessions::end))
        .routes(routes!(sessions::look_up_user))
        .with_state(gateway)
}
