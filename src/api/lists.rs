//! Lists for operators: `GET /v1/users` and `GET /v1/sessions`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::page::{PageHead, PageParams, PrefixParam, limit, range};
use crate::broker::{ListedSession, ListedUser, Page};
use crate::edge::{Gateway, Operator, Query, Refusal, encode, json};
use crate::hub::Connections;
use crate::message::{Handle, SessionId, UserId};

/// A page of the users with registered sessions.
#[derive(Serialize, ToSchema)]
struct UserPage<'a> {
    #[serde(flatten)]
    head: PageHead<'a>,
    /// In the order of their names.
    users: Vec<UserItem<'a>>,
}

#[derive(Serialize, ToSchema)]
struct UserItem<'a> {
    user: &'a UserId,
    /// How many registered sessions the user has.
    sessions: usize,
    /// Of all its sessions together, on the node that answers.
    connections: Connections,
}

impl<'a> From<&'a ListedUser> for UserItem<'a> {
    fn from(ListedUser { user, sessions, connections }: &'a ListedUser) -> Self {
        Self { user, sessions: *sessions, connections: *connections }
    }
}

/// A page of sessions.
#[derive(Serialize, ToSchema)]
struct SessionPage<'a> {
    #[serde(flatten)]
    head: PageHead<'a>,
    /// In `open` mode in the order of their ids, else in an order of their handles.
    sessions: Vec<SessionItem<'a>>,
}

#[derive(Serialize, ToSchema)]
struct SessionItem<'a> {
    /// Only in `open` mode: elsewhere ids are secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a SessionId>,
    /// The public name of the session.
    handle: Handle,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a UserId>,
    /// When the registration ends, in Unix milliseconds. Absent if the session is not registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    /// On the node that answers.
    connections: Connections,
    /// Unread messages. Absent in a cluster, where they would have to be counted elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<usize>,
    /// Bytes of the unread messages, each counted with its envelope. Absent where `pending` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
}

impl<'a> SessionItem<'a> {
    fn new(listed: &'a ListedSession, secret_ids: bool) -> Self {
        Self {
            session: Some(&listed.session).filter(|_| !secret_ids),
            handle: listed.handle,
            user: listed.user.as_ref(),
            expires: listed.expires_at,
            connections: listed.connections,
            pending: listed.stored.map(|stored| stored.messages),
            bytes: listed.stored.and_then(|stored| stored.bytes),
        }
    }
}

/// List the users with registered sessions
#[utoipa::path(
    get, path = "/v1/users", tag = "operations", params(PrefixParam, PageParams),
    responses((status = 200, description = "A page of users, in the order of their names", body = UserPage<'_>), Refusal)
)]
pub(super) async fn users(
    _: Operator,
    State(gateway): State<Arc<Gateway>>,
    head: Parts,
) -> Result<Response, Refusal> {
    let query = Query::parse(&head.uri)?;
    let page = gateway.broker.list_users(range(&query)?, limit(&query)?);
    let users = page.items.iter().map(UserItem::from).collect();
    Ok(json(StatusCode::OK, encode(&UserPage { head: PageHead::new(&gateway, &page), users })))
}

/// List sessions
///
/// In `open` mode: those that are registered, connected, or have unread messages. Elsewhere: those that are registered.
#[utoipa::path(
    get, path = "/v1/sessions", tag = "operations", params(PageParams),
    responses((status = 200, description = "A page of sessions", body = SessionPage<'_>), Refusal)
)]
pub(super) async fn sessions(
    _: Operator,
    State(gateway): State<Arc<Gateway>>,
    head: Parts,
) -> Result<Response, Refusal> {
    let query = Query::parse(&head.uri)?;
    let (range, limit) = (range(&query)?, limit(&query)?);
    let secret_ids = gateway.broker.limits().secret_ids;
    let page: Page<ListedSession> = if secret_ids {
        let after = range.after.map(|cursor| Handle::parse(cursor).ok_or_else(no_cursor)).transpose()?;
        gateway.broker.list_sessions_by_handle(after, limit).await
    } else {
        gateway.broker.list_sessions(range, limit).await
    };
    let sessions = page.items.iter().map(|listed| SessionItem::new(listed, secret_ids)).collect();
    Ok(json(StatusCode::OK, encode(&SessionPage { head: PageHead::new(&gateway, &page), sessions })))
}

fn no_cursor() -> Refusal {
    Refusal::bad_param(
        "cursor",
        "is not the `next` of a page of this list; leave it out to begin at the start",
    )
}
