//! Which pages may read the answers to x0 clients.

use std::net::IpAddr;

use axum::http::{HeaderValue, Method, header};
use axum::response::Response;

use crate::config::Access;
use crate::edge::{Headers, OriginCheck, Refusal, text};
use crate::protocol::Code;
use crate::transport::legacy::shape::{LegacyError, LegacyRequest};
use crate::transport::legacy::source::LOGGED;

const ANY: HeaderValue = HeaderValue::from_static("*");

/// Which pages may read the answer to a request.
pub(super) enum LegacyCors {
    /// All pages.
    Any,
    /// The pages of this origin.
    Origin(HeaderValue),
    /// Pages of the same origin, and clients that are no browsers.
    SameOrigin,
    /// Not the page that has sent the request. The request is not acted on either.
    Foreign,
}

impl LegacyCors {
    pub(super) fn of(access: &Access, method: &Method, check: OriginCheck<'_>) -> Self {
        let headers = check.headers;
        let allowed = &access.legacy_allow_origin;
        if allowed.iter().any(|origin| origin == "*") {
            return Self::Any;
        }
        let mut origins = headers.all("origin");
        let (origin, another) = (origins.next(), origins.next());
        match origin {
            // A browser names one.
            Some(_) if another.is_some() => Self::Foreign,
            Some(origin) if allowed.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin)) => {
                HeaderValue::from_bytes(origin).map_or(Self::Foreign, Self::Origin)
            }
            Some(_) => Self::Foreign,
            None if is_from_another_site(headers) => Self::Foreign,
            // A net event. Browsers do not name the site to a host of plain HTTP, as x0's is.
            None if *method == Method::GET
                && !(accepts_json(headers) && check.net_event_allowed(access, allowed)) =>
            {
                Self::Foreign
            }
            None => Self::SameOrigin,
        }
    }

    pub(super) fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign)
    }

    /// Sets the CORS headers of an answer. Without them the browser hides the answer, and the page stops polling.
    pub(super) fn apply(self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        if !matches!(self, Self::Any) {
            headers.insert(header::VARY, HeaderValue::from_static("origin"));
        }
        if let Self::Any | Self::Origin(_) = self {
            let origin = if let Self::Origin(origin) = self { origin } else { ANY };
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ANY);
        }
        response
    }
}

/// Whether a page of another site caused a request without an origin, as one for an image.
fn is_from_another_site(headers: Headers<'_>) -> bool {
    matches!(headers.get("sec-fetch-site"), Some(b"cross-site" | b"same-site"))
}

/// Whether a request accepts JSON by name, as all requests of the x0 client do. Images, frames and links do not.
fn accepts_json(headers: Headers<'_>) -> bool {
    let accepted = headers.all("accept").filter_map(text);
    let mut types = accepted.flat_map(|value| value.split(','));
    types.any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json"))
}

/// What a page of a foreign origin gets: its polls are held without a session, its sends fail. What gets no error is noted here.
pub(super) fn demote_foreign(
    request: Result<LegacyRequest, LegacyError>,
    address: Option<IpAddr>,
) -> Result<LegacyRequest, LegacyError> {
    let refusal =
        Refusal::new(Code::Forbidden, "pages of this origin are not allowed (see --legacy-allow-origin)");
    let allowed = match request? {
        LegacyRequest::Poll { .. } => LegacyRequest::Poll { session: None, ack: None },
        LegacyRequest::Del { .. } => LegacyRequest::Del { session: None },
        LegacyRequest::Send { .. } => return Err(LegacyError::Send(refusal.message)),
    };
    refusal.note(LOGGED, address);
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::Request;
    use serde_json::value::RawValue;

    use super::*;
    use crate::message::Seq;
    use crate::transport::testing::{gateway, session};

    const BROWSER: (&str, &str) = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0");
    const ONE: &[&str] = &["--legacy-allow-origin", "http://x0.test"];

    fn cors(flags: &[&str], headers: &[(&'static str, &'static str)]) -> LegacyCors {
        cors_of(&Method::POST, flags, headers)
    }

    fn cors_of(method: &Method, flags: &[&str], headers: &[(&'static str, &'static str)]) -> LegacyCors {
        let mut request =
            Request::builder().method(method).uri("/python/MsgHandler.py").header("host", "x0.test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        LegacyCors::of(&gateway(flags).access(), method, (&request).into())
    }

    /// The allowed origin and the `vary` header of an answer.
    fn marks(cors: LegacyCors) -> (Option<String>, bool) {
        let response = cors.apply(Response::new(Body::empty()));
        let headers = response.headers();
        let origin = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        assert_eq!(origin.is_some(), headers.contains_key(header::ACCESS_CONTROL_ALLOW_HEADERS));
        (origin.map(|origin| origin.to_str().unwrap().to_owned()), headers.contains_key(header::VARY))
    }

    #[tokio::test]
    async fn by_default_all_pages_may_read() {
        let cors = cors(&[], &[("origin", "http://any.test"), ("sec-fetch-site", "cross-site")]);
        assert!(!cors.is_foreign());
        assert_eq!(marks(cors), (Some("*".to_owned()), false));
    }

    #[tokio::test]
    async fn a_listed_origin_is_named_in_the_answer() {
        let cors = cors(ONE, &[("origin", "HTTP://x0.test")]);
        assert!(!cors.is_foreign());
        assert_eq!(marks(cors), (Some("HTTP://x0.test".to_owned()), true));
    }

    #[tokio::test]
    async fn other_pages_are_foreign_and_other_clients_are_not() {
        for (headers, foreign) in [
            (&[("origin", "http://other.test")][..], true),
            (&[("origin", "null")], true),
            (&[("origin", "http://x0.test"), ("origin", "http://other.test")], true),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[], false),
        ] {
            let cors = cors(ONE, headers);
            assert_eq!(cors.is_foreign(), foreign, "{headers:?}");
            assert_eq!(marks(cors), (None, true), "{headers:?}");
        }
    }

    #[tokio::test]
    async fn a_net_event_without_an_origin_accepts_json_as_the_x0_client_does() {
        for (headers, foreign) in [
            (&[][..], true),
            (&[("accept", "*/*")], true),
            (&[("accept", "image/avif,image/webp,*/*;q=0.8")], true),
            (&[("accept", "application/json")], false),
            (&[("accept", "text/plain, application/json;q=0.9")], false),
            (&[("accept", "application/json"), ("sec-fetch-site", "same-origin")], false),
            (&[("accept", "application/json"), ("sec-fetch-site", "same-site")], true),
            (&[("accept", "*/*"), ("origin", "http://x0.test")], false),
            // A page may set `Accept`, and may leave out its `Referer`.
            (&[("accept", "application/json"), ("referer", "http://evil.test/page")], true),
            (&[("accept", "application/json"), ("referer", "http://x0.test.evil.test/")], true),
            (&[("accept", "application/json"), BROWSER, ("accept-language", "en")], true),
            (
                &[("accept", "application/json"), BROWSER, ("referer", "http://x0.test/page?x=http://y/")],
                false,
            ),
            (&[("accept", "*/*"), ("referer", "http://x0.test/page")], true),
        ] {
            let cors = cors_of(&Method::GET, ONE, headers);
            assert_eq!(cors.is_foreign(), foreign, "{headers:?}");
            assert!(!cors_of(&Method::GET, &[], headers).is_foreign(), "all pages may send: {headers:?}");
        }
    }

    #[test]
    fn a_foreign_page_reads_nothing_deletes_nothing_and_sends_nothing() {
        let a = || Some(session("A"));
        let poll = demote_foreign(Ok(LegacyRequest::Poll { session: a(), ack: Some(Seq(1)) }), None);
        assert!(matches!(poll, Ok(LegacyRequest::Poll { session: None, ack: None })));
        let delete = demote_foreign(Ok(LegacyRequest::Del { session: a() }), None);
        assert!(matches!(delete, Ok(LegacyRequest::Del { session: None })));
        let payload = RawValue::from_string("{}".to_owned()).unwrap();
        let send = LegacyRequest::Send { from: None, to: session("B"), payload };
        assert!(matches!(demote_foreign(Ok(send), None), Err(LegacyError::Send(_))));
        let bad = Err(LegacyError::NotX0("x".to_owned()));
        assert!(matches!(demote_foreign(bad, None), Err(LegacyError::NotX0(_))));
    }
}
