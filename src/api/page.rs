//! Pages of lists: what a call asks for, and what all pages have in common.

use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::broker::Page;
use crate::edge::{Gateway, Query, Refusal};
use crate::engine::Scope;
use crate::message::{MAX_NAME, NameRange};

/// Most items of one page, and how many it has by default.
const MAX_ITEMS: usize = 1000;
const DEFAULT_ITEMS: usize = 100;

/// The parameters of a list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes the parameters")]
pub(super) struct PageParams {
    /// The `next` of the page before.
    #[param(max_length = 256)]
    cursor: Option<String>,
    /// Most items of the page; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// The parameters of a list of names.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes the parameters")]
pub(super) struct PrefixParam {
    /// What the names begin with.
    #[param(max_length = 256)]
    prefix: Option<String>,
}

/// What all pages have in common.
#[derive(Serialize, ToSchema)]
pub(super) struct PageHead<'a> {
    /// Of what machines the names are: `node` for the one that answers, or `cluster`. Connections are always those of the node
    /// that answers.
    scope: Scope,
    /// The node that answers. Absent without a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    /// The `cursor` of the next page. Absent on the last one. A page may hold fewer items than the limit and have a next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

impl<'a> PageHead<'a> {
    pub(super) fn new<T>(gateway: &'a Gateway, page: &'a Page<T>) -> Self {
        Self { scope: page.scope, node: gateway.broker.node(), next: page.next.as_deref() }
    }
}

/// A part of a query that is no name, and yet bounded as names are.
fn text<'q>(query: &'q Query, name: &str) -> Result<Option<&'q str>, Refusal> {
    match query.get(name) {
        Some(text) if text.len() > MAX_NAME => Err(Refusal::bad_param(
            name,
            format_args!("is {} bytes long; at most {MAX_NAME} are allowed", text.len()),
        )),
        text => Ok(text),
    }
}

/// The names that a call asks for.
///
/// # Errors
/// `bad_request` for a `prefix` or `cursor` that is longer than a name.
pub(super) fn range(query: &Query) -> Result<NameRange<'_>, Refusal> {
    Ok(NameRange { prefix: text(query, "prefix")?.unwrap_or_default(), after: text(query, "cursor")? })
}

/// Parameter `limit`: the most items of a page.
///
/// # Errors
/// `bad_request` if it is not a number in range.
pub(super) fn limit(query: &Query) -> Result<usize, Refusal> {
    let Some(text) = query.get("limit") else { return Ok(DEFAULT_ITEMS) };
    let limit = text.parse().ok().filter(|limit| (1..=MAX_ITEMS).contains(limit));
    let invalid =
        || Refusal::bad_param("limit", format_args!("must be a whole number from 1 to {MAX_ITEMS}"));
    limit.ok_or_else(invalid)
}
