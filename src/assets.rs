//! The pages inside the binary: the demo, the browser client, the documentation and the dashboard.

use std::sync::LazyLock;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;

use crate::config::Pages;
use crate::edge::Refusal;
use crate::protocol::Code;

mod asset;
mod docs;
mod markdown;

use asset::{Asset, HTML};

const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! file {
    ($path:literal, $content_type:expr, $name:literal) => {
        ($path, $content_type, include_str!(concat!("../web/", $name)))
    };
}

/// Path, content type and content of a file that is served as it is.
type File = (&'static str, &'static str, &'static str);

/// What pages of applications load.
const LIBRARIES: [File; 3] = [
    file!("/client.js", JAVASCRIPT, "client.js"),
    file!("/client.d.ts", "text/plain; charset=utf-8", "client.d.ts"),
    file!("/x0.js", JAVASCRIPT, "x0.js"),
];

/// The dashboard. It loads nothing else, and talks to nobody but the broker.
const ADMIN: [File; 9] = [
    file!("/admin", HTML, "admin.html"),
    file!("/admin.css", CSS, "admin.css"),
    file!("/admin.js", JAVASCRIPT, "admin.js"),
    file!("/admin-actions.js", JAVASCRIPT, "admin-actions.js"),
    file!("/admin-api.js", JAVASCRIPT, "admin-api.js"),
    file!("/admin-charts.js", JAVASCRIPT, "admin-charts.js"),
    file!("/admin-figures.js", JAVASCRIPT, "admin-figures.js"),
    file!("/vendor/uplot.css", CSS, "vendor/uplot/uPlot.min.css"),
    file!("/vendor/uplot.js", JAVASCRIPT, "vendor/uplot/uPlot.iife.min.js"),
];

/// The other pages of the broker itself, without the documentation.
const PAGES: [File; 6] = [
    file!("/", HTML, "index.html"),
    file!("/demo.js", JAVASCRIPT, "demo.js"),
    file!("/docs.css", CSS, "docs.css"),
    file!("/docs.js", JAVASCRIPT, "docs.js"),
    file!("/icon.svg", "image/svg+xml", "icon.svg"),
    file!("/style.css", CSS, "style.css"),
];

/// What a browser shows where there is nothing.
static NOT_FOUND: LazyLock<Asset> = LazyLock::new(|| Asset::new(HTML, include_str!("../web/not-found.html")));

/// The page that says that there is nothing at an address.
pub(crate) fn not_found() -> Response {
    NOT_FOUND.answer_as(StatusCode::NOT_FOUND)
}

/// The routes of all pages. They are public in every mode.
pub(crate) fn routes(pages: Pages) -> Router {
    let libraries = files(LIBRARIES, Asset::new);
    match pages {
        Pages::On => {
            libraries.merge(files(PAGES, Asset::new)).merge(files(ADMIN, Asset::strict)).merge(docs::routes())
        }
        Pages::Off => {
            let files = PAGES.into_iter().chain(ADMIN).map(|(path, ..)| path);
            let paths = files.chain(["/docs", "/docs/{*page}", "/docs/"]);
            paths.fold(libraries, |router, path| router.route(path, get(no_pages)))
        }
    }
}

fn files(files: impl IntoIterator<Item = File>, make: fn(&'static str, &'static str) -> Asset) -> Router {
    files.into_iter().fold(Router::new(), |router, (path, content_type, body)| {
        let asset = make(content_type, body);
        router.route(path, get(async move |headers: HeaderMap| asset.answer(&headers)))
    })
}

async fn no_pages() -> Refusal {
    Refusal::new(Code::NotFound, "this broker serves no pages (--pages off)")
}
