//! The documentation at `/docs/`: the pages of `web/docs`, a table of contents for each, and an index for the search.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::LazyLock;

use axum::Router;
use axum::http::HeaderMap;
use axum::response::Redirect;
use axum::routing::get;
use serde::Serialize;

use super::asset::{Asset, HTML};
use super::markdown::{Page, render};

macro_rules! page {
    ($name:literal) => {
        ($name, include_str!(concat!("../../web/docs/", $name, ".md")))
    };
}

/// Name and source of each page, in the order of the navigation.
const PAGES: [(&str, &str); 11] = [
    page!("index"),
    page!("protocol"),
    page!("http"),
    page!("client"),
    page!("access"),
    page!("x0"),
    page!("storage"),
    page!("limits"),
    page!("operating"),
    page!("cluster"),
    page!("measured"),
];

/// What stands around the content of each page.
const FRAME: &str = include_str!("../../web/docs.html");

/// Rendered at the first request: the start does not wait for it.
static SITE: LazyLock<Site> = LazyLock::new(Site::new);

#[derive(Debug)]
struct Site {
    pages: HashMap<&'static str, Asset>,
    search: Asset,
}

/// One section, as the search of the browser reads it.
#[derive(Serialize)]
struct SearchEntry<'a> {
    path: String,
    page: &'a str,
    heading: &'a str,
    text: &'a str,
    /// Further words that find it.
    words: &'a str,
}

impl Site {
    fn new() -> Self {
        let pages: Vec<(&str, Page)> =
            PAGES.into_iter().map(|(name, source)| (name, render(source))).collect();
        let sections: Vec<SearchEntry<'_>> =
            pages.iter().flat_map(|(name, page)| search_entries(name, page)).collect();
        let search = serde_json::to_string(&sections).expect("text always encodes");
        let framed = pages.iter().map(|(name, page)| (*name, Asset::new(HTML, frame(name, page, &pages))));
        Self { pages: framed.collect(), search: Asset::new("application/json", search) }
    }
}

/// The path of a page.
fn path(name: &str) -> String {
    format!("/docs/{}", if name == "index" { "" } else { name })
}

fn search_entries<'a>(name: &str, page: &'a Page) -> impl Iterator<Item = SearchEntry<'a>> {
    let path = path(name);
    page.sections.iter().map(move |section| SearchEntry {
        path: format!("{path}#{}", section.anchor),
        page: &page.title,
        heading: &section.heading,
        text: section.text.trim(),
        words: &section.words,
    })
}

/// A page within its frame: navigation, content, table of contents.
fn frame(name: &str, page: &Page, all: &[(&str, Page)]) -> String {
    let mut navigation = String::new();
    for (other, Page { title, .. }) in all {
        let current = if *other == name { " aria-current=\"page\"" } else { "" };
        let (path, title) = (path(other), escape(title));
        _ = write!(navigation, "<li><a href=\"{path}\"{current}>{title}</a></li>");
    }
    let mut contents = String::new();
    for section in page.sections.iter().filter(|section| matches!(section.level, 2 | 3)) {
        let (level, anchor, heading) = (section.level, &section.anchor, escape(&section.heading));
        _ = write!(contents, "<li class=\"level-{level}\"><a href=\"#{anchor}\">{heading}</a></li>");
    }
    // The content last: what it contains is not a placeholder.
    FRAME
        .replace("{{title}}", &escape(&page.title))
        .replace("{{summary}}", &escape(&page.summary))
        .replace("{{version}}", env!("CARGO_PKG_VERSION"))
        .replace("{{navigation}}", &navigation)
        .replace("{{contents}}", &contents)
        .replace("{{content}}", &page.html)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The routes below `/docs/`.
pub(super) fn routes() -> Router {
    let router = Router::new()
        .route("/docs", get(async || Redirect::permanent("/docs/")))
        .route("/docs/search.json", get(async |headers: HeaderMap| SITE.search.answer(&headers)));
    PAGES.into_iter().fold(router, |router, (name, _)| {
        router.route(&path(name), get(async move |headers: HeaderMap| SITE.pages[name].answer(&headers)))
    })
}
