//! Who may see the state of the whole broker: metrics, lists, the dashboard.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::config::Auth;
use crate::edge::address::came_through_proxy;
use crate::edge::gateway::Gateway;
use crate::edge::host::names_loopback_only;
use crate::edge::origin::OriginCheck;
use crate::edge::proof::Proved;
use crate::edge::refusal::Refusal;
use crate::identity::Credentials;
use crate::protocol::Code;

/// A caller that may see the state of the whole broker. As an argument of a handler it refuses everyone else.
///
/// That is a caller with an API key that has `ops = true`. In `open` mode it is also everyone on this machine; see
/// [`is_local`].
#[derive(Debug)]
pub(crate) struct Operator {
    /// The name of its API key; `None` for a program on this machine without a key, in `open` mode.
    pub key: Option<Arc<str>>,
}

impl FromRequestParts<Arc<Gateway>> for Operator {
    type Rejection = Refusal;

    /// # Errors
    /// `unauthorized` without an API key, or with a wrong one, `rate_limited` after too many. `forbidden` for other
    /// credentials.
    async fn from_request_parts(head: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Refusal> {
        gateway.operator(head).await
    }
}

impl Gateway {
    /// The operator that makes this call.
    ///
    /// # Errors
    /// Those of [`Operator`] as an argument of a handler.
    pub(crate) async fn operator(&self, head: &Parts) -> Result<Operator, Refusal> {
        let proved = self.prove(head).await?;
        self.operator_of_proved(head, &proved)
    }

    /// The operator that makes this call with this proof.
    ///
    /// # Errors
    /// `unauthorized` without an API key, `forbidden` for other credentials.
    pub(crate) fn operator_of_proved(&self, head: &Parts, proved: &Proved) -> Result<Operator, Refusal> {
        let backend = match proved {
            Proved::Credentials(Credentials::Backend(backend)) => Some(backend),
            _ => None,
        };
        if let Some(backend) = backend.filter(|backend| backend.ops) {
            return Ok(Operator { key: Some(Arc::clone(&backend.name)) });
        }
        let access = &self.access();
        let check = OriginCheck::from(head);
        if self.identity.auth() == Auth::Open && is_local(check) && check.origin_allowed(access) {
            return Ok(Operator { key: backend.map(|backend| Arc::clone(&backend.name)) });
        }
        Err(match proved {
            Proved::Credentials(Credentials::None) => Refusal::new(Code::Unauthorized, self.how_to_operate()),
            Proved::Credentials(Credentials::Backend(_)) => {
                Refusal::new(Code::Forbidden, "this call is for operators: this API key has no `ops = true`")
            }
            Proved::Credentials(Credentials::Token(_)) | Proved::Session(_) => Refusal::new(
                Code::Forbidden,
                "this call is for operators, with an API key that has `ops = true`; tokens and sessions cannot make it",
            ),
        })
    }

    fn how_to_operate(&self) -> &'static str {
        match self.identity.auth() {
            Auth::Token => {
                "this call is for operators: show an API key that has `ops = true` as `Authorization: Bearer …`"
            }
            Auth::Open => {
                "this call is for operators: make it on the broker's machine by a loopback name like localhost, and not \
                 through a proxy; or show an API key that has `ops = true` as `Authorization: Bearer …`"
            }
        }
    }
}

/// Whether a request comes from a program on this machine, or from a page that a loopback name was typed for.
///
/// The peer and all hosts that the request names are loopback. A page that has given its own name a loopback address (DNS
/// rebinding) names that. A proxy on this machine says in a header that the client is elsewhere, trusted or not.
fn is_local(request: OriginCheck<'_>) -> bool {
    request.peer.0.is_some_and(|peer| peer.to_canonical().is_loopback())
        && names_loopback_only(request)
        && !came_through_proxy(request.headers)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;
    use crate::edge::address::Peer;

    fn is_local(peer: Option<&str>, authority: Option<&str>, pairs: &[(&'static str, &'static str)]) -> bool {
        let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut headers = HeaderMap::new();
        pairs.iter().copied().map(pair).for_each(|(name, value)| _ = headers.append(name, value));
        let peer = Peer(peer.map(|peer| peer.parse().unwrap()));
        super::is_local(OriginCheck { authority, headers: (&headers).into(), peer })
    }

    #[test]
    fn a_program_on_this_machine_is_local() {
        for (peer, host) in [
            ("127.0.0.1", "localhost:8080"),
            ("::1", "[::1]:8080"),
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("127.0.0.1", "APP.localhost."),
        ] {
            assert!(is_local(Some(peer), None, &[("host", host)]), "{host}");
            assert!(is_local(Some(peer), Some(host), &[]), "{host} over HTTP/2");
        }
    }

    #[test]
    fn another_machine_is_not_local_whatever_it_says() {
        let host = ("host", "localhost");
        assert!(!is_local(Some("192.0.2.1"), None, &[host]));
        assert!(!is_local(None, None, &[host]), "without a socket nothing is known");
        for header in ["x-forwarded-for", "forwarded", "x-forwarded-host", "x-real-ip", "via"] {
            assert!(!is_local(Some("127.0.0.1"), None, &[host, (header, "127.0.0.1")]), "{header}");
        }
    }

    #[test]
    fn a_page_whose_own_name_leads_to_loopback_is_not_local() {
        let check = |authority, pairs| is_local(Some("127.0.0.1"), authority, pairs);
        assert!(!check(None, &[("host", "rebind.example:8080")]));
        assert!(!check(None, &[("host", "localhost"), ("host", "rebind.example")]));
        assert!(!check(Some("rebind.example"), &[("host", "localhost")]));
        assert!(!check(None, &[("host", "x0-msg-server.x0.localnet")]), "others may have this name");
        assert!(!check(None, &[]) && !check(None, &[("host", "")]), "no name at all");
    }
}
