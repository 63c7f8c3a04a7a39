//! One file as it is served: its content type, its entity tag, and the headers of all pages.

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

pub(super) const HTML: &str = "text/html; charset=utf-8";

/// Pages load nothing from other origins. Sockets may connect to any broker.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss: http: https:; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One file, ready to be served.
#[derive(Debug, Clone)]
pub(super) struct Asset {
    content_type: &'static str,
    body: Bytes,
    etag: String,
    policy: &'static str,
    /// Whether pages of other origins may load it.
    is_public: bool,
}

/// A page that an operator shows a key to loads and sends nothing elsewhere.
const STRICT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                             base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

impl Asset {
    pub(super) fn new(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let etag = etag(&body);
        Self { content_type, body, etag, policy: POLICY, is_public: true }
    }

    /// A file for a page that loads and sends nothing elsewhere.
    pub(super) fn strict(content_type: &'static str, body: &'static str) -> Self {
        Self { policy: STRICT_POLICY, is_public: false, ..Self::new(content_type, body) }
    }

    /// The file, or "not modified" for a client that has it.
    pub(super) fn answer(&self, request: &HeaderMap) -> Response {
        let mut known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|field| field.to_str().ok());
        let mut response = match known.any(|field| names(field, &self.etag)) {
            true => self.with_headers(StatusCode::NOT_MODIFIED, Bytes::new()),
            false => self.with_headers(StatusCode::OK, self.body.clone()),
        };
        let etag = HeaderValue::from_str(&self.etag).expect("an entity tag is ASCII");
        response.headers_mut().insert(header::ETAG, etag);
        response
    }

    /// The file with this status, for an address that is not its own.
    pub(super) fn answer_as(&self, status: StatusCode) -> Response {
        self.with_headers(status, self.body.clone())
    }

    fn with_headers(&self, status: StatusCode, body: Bytes) -> Response {
        let headers = [
            (header::CACHE_CONTROL, "no-cache"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::CONTENT_SECURITY_POLICY, self.policy),
            (header::CONTENT_TYPE, self.content_type),
        ];
        // Pages of other origins may import the modules.
        let public = self.is_public.then_some([(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")]);
        (status, headers, public, body).into_response()
    }
}

/// Whether a list of entity tags names this one (RFC 9110 section 13.1.2): a weak one too, and `*` names all.
fn names(field: &str, etag: &str) -> bool {
    field.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// An entity tag that changes with the content: FNV-1a, 64 bits.
fn etag(body: &[u8]) -> String {
    let hash = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("\"{hash:016x}\"")
}
