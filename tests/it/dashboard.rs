//! The dashboard: its page, and what it reads.

use serde_json::json;

use crate::common::*;

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere_and_sends_nothing_elsewhere() {
    let server = TestServer::start().await;
    let mut http = server.http().await;
    let page = http.get("/admin").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").to_owned();
    assert!(policy.starts_with("default-src 'none';") && policy.contains("connect-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(page.header("access-control-allow-origin"), "");
    let quoted = page.body.split('"').filter(|text| text.starts_with('/') && text.contains('.'));
    let paths: Vec<&str> = quoted.collect();
    assert!(paths.contains(&"/admin.js") && paths.contains(&"/vendor/uplot.js"), "{paths:?}");
    for path in paths.into_iter().chain([
        "/admin-actions.js",
        "/admin-api.js",
        "/admin-charts.js",
        "/admin-figures.js",
    ]) {
        assert_eq!(http.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn it_reads_figures_limits_and_what_was_logged_of_importance() {
    // It has no effect in `open` mode, which is a warning.
    let server = TestServer::with(&[
        "--token-issuer",
        "idp",
        "--max-payload",
        "4KiB",
        "--connections-per-address",
        "9",
    ])
    .await;
    let stats = server.get("/v1/ops/stats").await.json();
    assert_eq!(
        (&stats["status"], &stats["auth"], &stats["durability"]),
        (&json!("ok"), &json!("open"), &json!("fsync"))
    );
    assert!(stats["figures"]["process_resident_memory_bytes"].as_f64().unwrap() > 1e6, "{stats}");
    let limits = stats["limits"].as_array().unwrap();
    for (name, expected, unit) in [("max_payload", 4096, "bytes"), ("connections_per_address", 9, "count")] {
        let limit = limits.iter().find(|limit| limit["name"] == name).unwrap();
        assert_eq!((&limit["limit"], &limit["unit"]), (&json!(expected), &json!(unit)), "{name}");
    }
    let events = stats["events"].as_array().unwrap();
    let warning = events.iter().find(|event| event["message"].as_str().unwrap().contains("--token-issuer"));
    let warning = warning.unwrap_or_else(|| panic!("{stats}"));
    assert_eq!((&warning["level"], &warning["count"]), (&json!("WARN"), &json!(1)));
    assert!(
        events
            .iter()
            .all(|event| event["level"] != "INFO" || event["fields"].as_str().unwrap().contains("code="))
    );
}
