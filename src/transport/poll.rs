//! `GET /v1/messages` and `POST /v1/messages/poll`: the native long-poll. The cursor of the next call acknowledges.

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

mod answer;
mod polling;
mod posted;
mod request;

pub(crate) use polling::{PATH, PollReaders, Polls};
pub(crate) use posted::PATH as POSTED_PATH;

/// The routes of this transport.
pub(crate) fn routes(polls: Polls) -> OpenApiRouter {
    OpenApiRouter::default()
        .routes(routes!(polling::poll))
        .routes(routes!(posted::post_poll))
        .with_state(polls)
}

#[cfg(test)]
mod tests;
