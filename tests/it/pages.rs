//! The pages: what is served, and that every link leads somewhere, here and in the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::common::*;
use crate::guarded::*;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn source(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// The names of the pages in `web/docs`.
fn names() -> BTreeSet<String> {
    let files = std::fs::read_dir(repository().join("web/docs")).unwrap();
    files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// Where the broker serves a page.
fn path_of(name: &str) -> String {
    format!("/docs/{}", if name == "index" { "" } else { name })
}

/// What stands between two texts, each time.
fn between<'a>(text: &'a str, begin: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |rest| rest.split_once(end).map(|(found, _)| found))
}

/// All pages as they are served, by path.
async fn pages(server: &TestServer) -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    for name in names() {
        let path = path_of(&name);
        let reply = server.get(&path).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, "text/html; charset=utf-8"), "{path}");
        pages.insert(path, reply.body);
    }
    pages
}

/// What is wrong with a link to a place of these pages; what is outside of them is not looked at.
fn check_anchor(pages: &BTreeMap<String, String>, path: &str, anchor: &str) -> Result<(), String> {
    let Some(html) = pages.get(path) else { return Err(format!("{path} is no page")) };
    match html.contains(&format!(" id=\"{anchor}\"")) {
        true => Ok(()),
        false => Err(format!("{path} has no anchor {anchor}")),
    }
}

#[tokio::test]
async fn files_and_pages_are_served_with_their_type_and_asked_for_once() {
    // In `token` mode too: pages are public.
    let server = Guarded::start().await;
    let mut all: Vec<(String, &str)> =
        names().iter().map(|name| (path_of(name), "text/html; charset=utf-8")).collect();
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/client.js", "text/javascript; charset=utf-8"),
        ("/x0.js", "text/javascript; charset=utf-8"),
        ("/demo.js", "text/javascript; charset=utf-8"),
        ("/docs.css", "text/css; charset=utf-8"),
        ("/docs.js", "text/javascript; charset=utf-8"),
        ("/docs/search.json", "application/json"),
        ("/icon.svg", "image/svg+xml"),
        ("/style.css", "text/css; charset=utf-8"),
    ] {
        all.push((path.to_owned(), content_type));
    }
    let mut http = server.http().await;
    for (path, content_type) in all {
        let reply = http.get(&path).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, content_type), "{path}");
        assert_eq!(reply.header("cache-control"), "no-cache");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert!(reply.header("content-security-policy").starts_with("default-src 'self'"));
        assert!(!reply.body.is_empty(), "{path}");
        let etag = reply.header("etag").to_owned();
        let reply = http.request("GET", &path, &[("if-none-match", &etag)], "").await;
        assert_eq!((reply.status, reply.header("etag"), reply.body.len()), (304, etag.as_str(), 0), "{path}");
        let reply = http.request("GET", &path, &[("if-none-match", "\"another\"")], "").await;
        assert_eq!(reply.status, 200, "{path}");
        let reply = http.request("HEAD", &path, &[], "").await;
        assert_eq!((reply.status, reply.header("etag"), reply.body.len()), (200, etag.as_str(), 0), "{path}");
    }
    let reply = http.get("/docs").await;
    assert_eq!((reply.status, reply.header("location")), (308, "/docs/"));
    assert_eq!(http.get("/docs/nothing").await.status, 404);
}

#[tokio::test]
async fn a_browser_at_an_address_without_anything_gets_a_page_and_a_program_json() {
    let server = TestServer::start().await;
    let mut http = server.http().await;
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for (target, accept, content_type) in [
        ("/docs/nothing", browser, "text/html; charset=utf-8"),
        ("/nothing", browser, "text/html; charset=utf-8"),
        ("/docs/nothing", "*/*", "application/json"),
        ("/docs/nothing", "", "application/json"),
        ("/v1/nothing", browser, "application/json"),
    ] {
        let reply = http.request("GET", target, &[("accept", accept)], "").await;
        assert_eq!((reply.status, reply.header("content-type")), (404, content_type), "{target} {accept}");
        assert_eq!((reply.header("x-content-type-options"), reply.header("vary")), ("nosniff", "accept"));
        assert_eq!(reply.header("etag"), "", "an entity tag of another address");
        let is_page = content_type.starts_with("text/html");
        assert_eq!(reply.body.contains("href=\"/docs/\""), is_page, "{}", reply.body);
        let head = http.request("HEAD", target, &[("accept", accept)], "").await;
        assert_eq!((head.status, head.header("content-type"), head.body.len()), (404, content_type, 0));
    }
    let reply = http.request("POST", "/docs/nothing", &[("accept", browser)], "").await;
    assert_eq!((reply.status, reply.code().as_str()), (404, "not_found"));
}

#[tokio::test]
async fn without_pages_everything_else_is_served() {
    let server = TestServer::with(&["--pages", "off"]).await;
    let mut http = server.http().await;
    let browser = [("accept", "text/html")];
    for path in
        ["/", "/demo.js", "/style.css", "/docs", "/docs/", "/docs/http", "/docs/search.json", "/admin"]
    {
        let reply = http.request("GET", path, &browser, "").await;
        assert_eq!((reply.status, reply.header("content-type")), (404, "application/json"), "{path}");
        assert!(reply.body.contains("--pages off"), "{path}: {}", reply.body);
    }
    let reply = http.request("GET", "/nothing", &browser, "").await;
    assert_eq!((reply.status, reply.code().as_str()), (404, "not_found"), "no page says so");
    for path in
        ["/healthz", "/readyz", "/openapi.json", "/client.js", "/x0.js", "/v1/messages?session=A&wait=0"]
    {
        assert_eq!(http.get(path).await.status, 200, "{path}");
    }
    server.session("A").await.ping().await;
}

#[tokio::test]
async fn the_search_knows_words_that_the_text_does_not_use() {
    let server = TestServer::start().await;
    let search = server.get("/docs/search.json").await.json();
    for (word, path) in [
        ("CORS", "/docs/access#origins"),
        ("download", "/docs/#install"),
        ("password", "/docs/access#tokens"),
        ("EventSource", "/docs/http#server-sent-events"),
        ("duplicate", "/docs/protocol#sending-once"),
    ] {
        let section = search.as_array().unwrap().iter().find(|section| section["path"] == path).unwrap();
        assert!(section["words"].as_str().unwrap().contains(word), "{section}");
    }
    let pages = pages(&server).await;
    assert!(pages.values().all(|html| !html.contains("<!-- search")));
}

#[tokio::test]
async fn every_link_of_a_served_page_leads_somewhere() {
    let server = TestServer::start().await;
    let pages = pages(&server).await;
    let mut wrong = Vec::new();
    let mut targets = BTreeSet::new();
    for (path, html) in &pages {
        for link in between(html, "href=\"", "\"").chain(between(html, "src=\"", "\"")) {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            let (target, anchor) =
                link.split_once('#').map_or((link, None), |(to, anchor)| (to, Some(anchor)));
            let target = match target {
                "" => path.clone(),
                "./" => "/docs/".to_owned(),
                absolute if absolute.starts_with('/') => absolute.to_owned(),
                relative => format!("/docs/{relative}"),
            };
            if let Some(anchor) = anchor {
                wrong.extend(check_anchor(&pages, &target, anchor).err().map(|why| format!("{path}: {why}")));
            }
            targets.insert(target);
        }
    }
    for target in &targets {
        if server.get(target).await.status != 200 {
            wrong.push(format!("{target} is not served"));
        }
    }
    assert!(targets.len() > pages.len(), "{targets:?}");
    assert_eq!(wrong, Vec::<String>::new());
}

#[tokio::test]
async fn every_page_is_in_the_index_in_the_navigation_and_in_the_search() {
    let server = TestServer::start().await;
    let pages = pages(&server).await;
    let (index, readme) = (source("web/docs/index.md"), source("README.md"));
    let search = server.get("/docs/search.json").await.json();
    let found: Vec<(&str, &str)> = search
        .as_array()
        .unwrap()
        .iter()
        .map(|section| section["path"].as_str().unwrap().split_once('#').unwrap())
        .collect();
    for name in names() {
        let path = path_of(&name);
        for (other, html) in &pages {
            let current = if *other == path { " aria-current=\"page\"" } else { "" };
            assert!(
                html.contains(&format!("<a href=\"{path}\"{current}>")),
                "{other} does not lead to {path}"
            );
        }
        assert!(name == "index" || index.contains(&format!("]({name}.md)")), "{name}");
        assert!(name == "index" || readme.contains(&format!("](web/docs/{name}.md)")), "{name}");
        let anchors = found.iter().filter(|(of, _)| *of == path);
        let wrong: Vec<String> =
            anchors.clone().filter_map(|(_, anchor)| check_anchor(&pages, &path, anchor).err()).collect();
        assert_eq!(wrong, Vec::<String>::new());
        assert!(anchors.count() > 2, "the search knows {name}");
    }
    let access =
        search.as_array().unwrap().iter().find(|section| section["path"] == "/docs/access#tls").unwrap();
    assert!(access["text"].as_str().unwrap().contains("--tls-cert"), "{access}");
}

/// Links of Markdown files, as a code host resolves them.
#[tokio::test]
async fn every_link_of_the_sources_leads_somewhere_in_the_repository() {
    let server = TestServer::start().await;
    let pages = pages(&server).await;
    let mut files: Vec<String> = names().iter().map(|name| format!("web/docs/{name}.md")).collect();
    files.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned));
    let (mut wrong, mut count) = (Vec::new(), 0);
    for file in files {
        let text = source(&file);
        let dir = Path::new(&file).parent().unwrap();
        for span in text.split('`').skip(1).step_by(2) {
            let path = span.split_whitespace().next().unwrap_or_default();
            let is_path = ["src/", "tests/", "docker/", "web/"].iter().any(|room| path.starts_with(room));
            if is_path && !repository().join(path).exists() {
                wrong.push(format!("{file}: there is no {path}"));
            }
        }
        for link in between(&text, "](", ")") {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            count += 1;
            let (target, anchor) =
                link.split_once('#').map_or((link, None), |(to, anchor)| (to, Some(anchor)));
            let target = if target.is_empty() { PathBuf::from(&file) } else { dir.join(target) };
            if !repository().join(&target).exists() {
                wrong.push(format!("{file}: there is no {}", target.display()));
            } else if let Some(anchor) = anchor {
                // The anchors of other files are not known here.
                assert!(target.starts_with("web/docs"), "{file}: {link}");
                let path = path_of(target.file_stem().unwrap().to_str().unwrap());
                wrong.extend(check_anchor(&pages, &path, anchor).err().map(|why| format!("{file}: {why}")));
            }
        }
    }
    assert!(count > 30, "{count}");
    assert_eq!(wrong, Vec::<String>::new());
}

/// What `--help` of a command says.
fn help(command: &str) -> String {
    let output = std::process::Command::new(BINARY).args([command, "--help"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The flags that follow this in a text.
fn flags(text: &str, before: &str) -> BTreeSet<String> {
    let name = |rest: &str| -> String {
        rest.chars().take_while(|char| char.is_ascii_lowercase() || *char == '-').collect()
    };
    text.split(&format!("{before}--")).skip(1).map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_setting_is_explained_and_every_flag_that_is_named_exists() {
    let pages: String = names().iter().map(|name| source(&format!("web/docs/{name}.md"))).collect();
    let named = flags(&pages, "`");
    let settings = flags(&help("serve"), " ");
    let missing: Vec<&String> = settings.difference(&named).filter(|flag| *flag != "help").collect();
    assert!(missing.is_empty(), "not in web/docs: {missing:?}");
    let mut known = settings.clone();
    for command in ["send", "listen", "token", "check", "health"] {
        known.extend(flags(&help(command), " "));
    }
    let unknown: Vec<&String> = named.difference(&known).collect();
    assert!(unknown.is_empty(), "in web/docs, but not in --help: {unknown:?}");
    assert!(settings.len() > 30, "{settings:?}");
}
