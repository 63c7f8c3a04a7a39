//! What the handshake request says: where it comes from, and possibly who connects.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::Version;

use crate::edge::{
    Caller, Gateway, NamedSession, Query, Refusal, RequestHead, SessionPolicy, Shown, client_address,
    origin_refused,
};
use crate::limits::ConnectionPermit;
use crate::link::Link;
use crate::protocol::{Code, Resume};

/// An accepted handshake.
pub(super) struct Handshake {
    /// The client's address, if known.
    pub(super) address: Option<IpAddr>,
    /// The caller and its position, if the request identifies it. A browser cannot set the header: its first frame
    /// identifies it.
    pub(super) caller: Option<Box<(Caller, Resume)>>,
    /// The window of that caller.
    pub(super) window: Option<u32>,
    /// Counts the connection for its address.
    pub(super) permit: ConnectionPermit,
    /// The connection, if it carries this socket alone: over HTTP/2 it carries others too.
    pub(super) link: Option<Arc<Link>>,
}

/// Checks a handshake request.
///
/// # Errors
/// `forbidden` for an origin that is not allowed, `rate_limited` for too many connections from one address,
/// `bad_request` for a bad query, and the errors of [`Gateway::identify`].
pub(super) async fn check(gateway: &Gateway, head: RequestHead<'_>) -> Result<Handshake, Refusal> {
    let address = client_address(&gateway.access(), head.check.peer, head.check.headers);
    check_of(gateway, head, address).await.map_err(|refusal| refusal.of_client(address))
}

async fn check_of(
    gateway: &Gateway,
    head: RequestHead<'_>,
    address: Option<IpAddr>,
) -> Result<Handshake, Refusal> {
    let RequestHead { version, query, check, link } = head;
    let link = link.filter(|_| version < Version::HTTP_2).cloned();
    let headers = check.headers;
    if !check.origin_allowed(&gateway.access()) {
        return Err(origin_refused(headers));
    }
    let permit = gateway.connection_permit(address)?;
    let query = Query::of(query)?;
    if query.get("token").is_some() {
        let text = "a token must not be in the address, since logs show addresses; send it in `hello`";
        return Err(Refusal::new(Code::BadRequest, text));
    }
    let (session, bearer) = (query.session()?, gateway.bearer(headers)?);
    let (mut caller, window) = (None, query.window()?);
    if bearer.is_some() || session.is_some() {
        let shown = Shown { bearer, session: session.map(NamedSession::InAddress), address };
        let grant = gateway.identify(shown, SessionPolicy::Create).await?;
        caller = Some(Box::new((Caller { grant, address }, query.resume("after")?)));
    }
    Ok(Handshake { address, caller, window, permit, link })
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;
    use crate::message::Seq;
    use crate::protocol::Close;
    use crate::transport::testing::gateway;

    async fn check_request(
        flags: &[&str],
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Handshake, Refusal> {
        let mut request = Request::get(target).header("host", "x0.test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        check(&gateway(flags), (&head).into()).await
    }

    fn refused(result: Result<Handshake, Refusal>) -> Refusal {
        result.err().expect("a refusal")
    }

    #[tokio::test]
    async fn the_query_may_name_session_and_position() {
        let handshake = check_request(&[], "/ws?session=A&after=17", &[]).await.ok().unwrap();
        let (caller, resume) = *handshake.caller.unwrap();
        assert_eq!(caller.grant.session().unwrap().as_str(), "A");
        assert_eq!(resume.after, Some(Seq(17)));
        assert!(check_request(&[], "/ws", &[]).await.ok().unwrap().caller.is_none());
    }

    #[tokio::test]
    async fn a_wrong_query_is_refused() {
        for target in [
            "/ws?session=",
            "/ws?session=%FF",
            "/ws?session=A&after=x",
            "/ws?session=A&window=0",
            "/ws?token=abc",
        ] {
            assert_eq!(refused(check_request(&[], target, &[]).await).code, Code::BadRequest, "{target}");
        }
    }

    #[tokio::test]
    async fn a_header_without_a_bearer_is_refused_where_credentials_are_checked() {
        let header = [("authorization", "Basic eDow")];
        let (dir, key) = (tempfile::tempdir().unwrap(), "0123456789abcdef0123456789abcdef");
        let file = dir.path().join("keys.toml");
        std::fs::write(&file, format!("[[key]]\nname = \"shop\"\nkey = \"{key}\"")).unwrap();
        let with_keys = ["--api-key-file", file.to_str().unwrap()];
        let refusal = refused(check_request(&with_keys, "/ws", &header).await);
        assert_eq!(refusal.code, Code::Unauthorized);
        assert!(check_request(&[], "/ws", &header).await.is_ok(), "an open broker without keys");
    }

    #[tokio::test]
    async fn pages_of_foreign_origins_are_refused() {
        let refusal = refused(check_request(&[], "/ws?session=A", &[("origin", "http://other.test")]).await);
        assert_eq!((refusal.code, refusal.close), (Code::Forbidden, Close::OriginRefused));
        assert!(check_request(&[], "/ws?session=A", &[("origin", "http://x0.test")]).await.is_ok());
        let listed = ["--allow-origin", "http://other.test"];
        assert!(check_request(&listed, "/ws", &[("origin", "http://other.test")]).await.is_ok());
    }
}
