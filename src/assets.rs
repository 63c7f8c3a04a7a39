//! The pages inside the binary: the demo, the browser client and the documentation.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

mod docs;
mod markdown;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";

macro_rules! file {
    ($path:literal, $content_type:expr, $name:literal) => {
        ($path, $content_type, include_str!(concat!("../web/", $name)))
    };
}

/// Path, content type and content of each file that is served as it is.
const FILES: [(&str, &str, &str); 7] = [
    file!("/", HTML, "index.html"),
    file!("/client.js", JAVASCRIPT, "client.js"),
    file!("/demo.js", JAVASCRIPT, "demo.js"),
    file!("/docs.css", CSS, "docs.css"),
    file!("/docs.js", JAVASCRIPT, "docs.js"),
    file!("/icon.svg", "image/svg+xml", "icon.svg"),
    file!("/style.css", CSS, "style.css"),
];

/// Pages load nothing from other origins. Sockets may connect to any broker.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss: http: https:; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One file, ready to be served.
#[derive(Debug, Clone)]
struct Asset {
    content_type: &'static str,
    body: Bytes,
    etag: String,
}

impl Asset {
    fn new(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let etag = etag(&body);
        Self { content_type, body, etag }
    }

    /// The file, or "not modified" for a client that has it.
    fn answer(&self, request: &HeaderMap) -> Response {
        let headers = [
            (header::ETAG, self.etag.as_str()),
            (header::CACHE_CONTROL, "no-cache"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            // Pages of other origins may import the modules.
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
            (header::CONTENT_TYPE, self.content_type),
        ];
        let known = request.get(header::IF_NONE_MATCH);
        if known.is_some_and(|known| known.as_bytes() == self.etag.as_bytes()) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        (headers, self.body.clone()).into_response()
    }
}

/// An entity tag that changes with the content: FNV-1a, 64 bits.
fn etag(body: &[u8]) -> String {
    let hash = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("\"{hash:016x}\"")
}

/// The routes of all pages. They are public in every mode.
pub(crate) fn routes() -> Router {
    let files = FILES.into_iter().fold(Router::new(), |router, (path, content_type, body)| {
        let asset = Asset::new(content_type, body);
        router.route(path, get(async move |headers: HeaderMap| asset.answer(&headers)))
    });
    files.merge(docs::routes())
}
