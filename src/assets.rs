//! The pages of `web/`, inside the binary.

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// One file, as it is served.
#[derive(Debug, Clone, Copy)]
struct Asset {
    path: &'static str,
    kind: &'static str,
    body: &'static str,
}

macro_rules! asset {
    ($path:literal, $file:literal, $kind:literal) => {
        Asset { path: $path, kind: $kind, body: include_str!(concat!("../web/", $file)) }
    };
}

const ASSETS: [Asset; 5] = [
    asset!("/", "index.html", "text/html; charset=utf-8"),
    asset!("/client.js", "client.js", "text/javascript; charset=utf-8"),
    asset!("/demo.js", "demo.js", "text/javascript; charset=utf-8"),
    asset!("/style.css", "style.css", "text/css; charset=utf-8"),
    asset!("/icon.svg", "icon.svg", "image/svg+xml"),
];

/// Pages load nothing from elsewhere; sockets may go to any broker.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss: http: https:; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Changes with the content, so that a browser asks once and is told "not modified" afterwards.
fn etag(body: &str) -> String {
    // FNV-1a, 64 bits: tells versions of one file apart.
    let hash = body.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("\"{hash:016x}\"")
}

fn serve(asset: Asset, tag: &str, headers: &HeaderMap) -> Response {
    let common = [
        (header::ETAG, tag),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        // A module may be imported by pages of other origins.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::CONTENT_TYPE, asset.kind),
    ];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, asset.body).into_response()
}

/// The routes.
pub fn routes() -> Router {
    ASSETS.into_iter().fold(Router::new(), |router, asset| {
        let tag = etag(asset.body);
        router.route(asset.path, get(async move |headers: HeaderMap| serve(asset, &tag, &headers)))
    })
}
