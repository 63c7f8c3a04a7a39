//! `/v1/backends`: how a backend's mailbox stands.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::path::{PathId, name};
use crate::broker::BrokerError;
use crate::edge::{ErrorBody, Gateway, Refusal, SessionPolicy, encode, json};
use crate::hub::Connections;
use crate::message::{Address, BackendName};

/// A backend with a mailbox.
#[derive(Serialize, ToSchema)]
struct BackendInfo<'a> {
    backend: &'a BackendName,
    connections: Connections,
    /// Unread messages of the backend.
    pending: usize,
}

/// Look the mailbox of a backend up
#[utoipa::path(
    get, path = "/v1/backends/{name}", tag = "sessions",
    params(("name" = BackendName, Path, description = "The name of the backend's API keys")),
    responses(
        (status = 200, description = "The connections and the number of unread messages", body = BackendInfo<'_>),
        (status = 404, description = "No API key gives a backend of this name a mailbox", body = ErrorBody<'_>),
        Refusal,
    )
)]
pub(super) async fn look_up(
    State(gateway): State<Arc<Gateway>>,
    PathId(id): PathId,
    head: Parts,
) -> Result<Response, Refusal> {
    let caller = gateway.authenticate_as(&head, (None, None), SessionPolicy::BackendOnly).await?;
    let backend = name(&id, BackendName::new)?;
    let mailbox = Address::Backend(backend.clone());
    // Its own mailbox every backend may look up.
    if caller.grant.mailbox().as_ref() != Some(&mailbox) {
        caller.grant.may_manage().map_err(BrokerError::from)?;
    }
    if !gateway.identity.has_mailbox(&backend) {
        return Err(BrokerError::NoSuchBackend(backend).into());
    }
    let (connections, pending) = gateway.broker.mailbox_state(&mailbox).await;
    Ok(json(StatusCode::OK, encode(&BackendInfo { backend: &backend, connections, pending })))
}
