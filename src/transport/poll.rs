//! `GET /v1/messages` and `POST /v1/messages/poll`: the native long-poll. The cursor of the next call acknowledges.

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge::Gateway;

mod answer;
mod polling;
mod posted;

pub(crate) use polling::PollReaders;
use polling::Polls;

/// The routes of this transport.
pub(crate) fn routes(gateway: Arc<Gateway>, readers: PollReaders) -> OpenApiRouter {
    OpenApiRouter::default()
        .routes(routes!(polling::poll))
        .routes(routes!(posted::post_poll))
        .with_state(Polls { gateway, readers })
}

#[cfg(test)]
mod tests;
