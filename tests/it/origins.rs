//! Origins: pages of other origins are refused unless they are configured.

use std::net::SocketAddr;

use serde_json::json;

use crate::common::*;

/// Opens a WebSocket as a page of this origin does.
async fn from_origin(address: SocketAddr, origin: Option<&str>) -> Ws {
    let origin = origin.map(|origin| ("origin", origin));
    Ws::with_headers(address, "?session=A", origin.as_slice()).await
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_unless_configured() {
    let server = TestServer::with(&["--allow-origin", "https://app.example,http://localhost:3000"]).await;
    let own = format!("http://{}", server.address);
    for (origin, allowed) in [
        (None, true),
        (Some(own.as_str()), true),
        (Some("https://app.example"), true),
        (Some("http://localhost:3000"), true),
        (Some("http://app.example"), false),
        (Some("https://app.example:8443"), false),
        (Some("https://app.example.evil.example"), false),
        (Some("http://localhost:3001"), false),
        (Some("null"), false),
        (Some("https://evil.example"), false),
    ] {
        let mut ws = from_origin(server.address, origin).await;
        if allowed {
            assert_eq!(ws.recv().await["type"], "welcome", "{origin:?}");
        } else {
            let (code, reason) = ws.closed().await;
            assert_eq!(code, 4503, "{origin:?}");
            assert!(reason.contains("--allow-origin"), "{reason}");
        }
        // The same for the calls of `/v1`, also those whose answer a page need not read.
        let headers: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().collect();
        let body = r#"{"to":{"session":"B"},"payload":1}"#;
        let reply = server.http().await.request("POST", "/v1/messages", &headers, body).await;
        assert_eq!(reply.status, if allowed { 200 } else { 403 }, "{origin:?}");
        let cross = origin.is_some_and(|origin| origin != own);
        let told = reply.header("access-control-allow-origin");
        assert_eq!(told, if allowed && cross { origin.unwrap() } else { "" }, "{origin:?}");
        // The x0 client may come from any origin.
        let body = x0_set("A", "C", &json!({})).to_string();
        let reply = server.http().await.request("POST", &x0_target(), &headers, body).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, "*"));
    }
    // With two origins, one of them may be the page's.
    let headers = [("origin", own.as_str()), ("origin", "https://evil.example")];
    let reply = server.http().await.request("GET", "/v1/messages?session=A&wait=0", &headers, "").await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
    assert_eq!(Ws::with_headers(server.address, "?session=A", &headers).await.closed().await.0, 4503);
    // The request of an image has no `Origin`, but `Sec-Fetch-Site` names another site.
    let headers = [("sec-fetch-site", "cross-site")];
    let reply = server.http().await.request("GET", "/v1/messages?session=B&wait=0", &headers, "").await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
    // Preflights of allowed origins are answered.
    let headers = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,traceparent"),
    ];
    let reply = server.http().await.request("OPTIONS", "/v1/messages", &headers, "").await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, "https://app.example"));
    // Besides its own headers, a page may send those of W3C Trace Context and W3C Baggage.
    let allowed: Vec<_> = reply.header("access-control-allow-headers").split(',').map(str::trim).collect();
    for name in ["authorization", "content-type", "last-event-id", "traceparent", "tracestate", "baggage"] {
        assert!(allowed.contains(&name), "{name} is not in {allowed:?}");
    }
}

/// An image or a link of any page asks with GET, and without an origin.
#[tokio::test]
async fn a_net_event_of_another_site_is_not_executed_where_origins_are_configured() {
    let server = TestServer::with(&["--legacy-allow-origin", "http://x0-app.x0.localnet"]).await;
    let target =
        format!("{HANDLER}?a__=1&SYS_SESSION=A&Type=SET&DestinationSession=B&Payload=SYS__NET_EVENT-e");
    let json = ("accept", "application/json");
    for headers in [
        &[json, ("sec-fetch-site", "same-site")][..],
        &[json, ("sec-fetch-site", "cross-site")],
        &[json, ("origin", "https://evil.example")],
        &[("accept", "image/*,*/*;q=0.8")],
        &[],
    ] {
        let reply = server.http().await.request("GET", &target, headers, "").await;
        assert_eq!(reply.status, 200, "{headers:?}");
        assert!(reply.body.contains("--legacy-allow-origin"), "{headers:?}: {}", reply.body);
    }
    assert_eq!(server.get("/v1/messages?session=B&wait=0").await.payloads(), NOTHING);
    // A page may set `Accept` in a `fetch` without CORS.
    let browser = [json, ("user-agent", "Mozilla/5.0 Firefox/140.0"), ("accept-language", "en")];
    for referer in [None, Some(("referer", "http://evil.example/"))] {
        let headers: Vec<_> = browser.into_iter().chain(referer).collect();
        let reply = server.http().await.request("GET", &target, &headers, "").await;
        assert!(reply.body.contains("--legacy-allow-origin"), "{referer:?}: {}", reply.body);
    }
    let headers: Vec<_> =
        browser.into_iter().chain([("referer", "http://x0-app.x0.localnet/page")]).collect();
    let reply = server.http().await.request("GET", &target, &headers, "").await;
    assert!(reply.body.contains("ok"), "the x0 client behind its proxy: {}", reply.body);
    assert_eq!(server.get("/v1/messages?session=B&wait=0").await.payloads().len(), 1);
}

#[tokio::test]
async fn the_origins_of_x0_pages_can_be_configured() {
    let server = TestServer::with(&["--legacy-allow-origin", "http://x0-app.x0.localnet"]).await;
    for (origin, told) in
        [("http://x0-app.x0.localnet", "http://x0-app.x0.localnet"), ("https://evil.example", "")]
    {
        for (method, body) in [("OPTIONS", String::new()), ("POST", x0_set("A", "B", &json!({})).to_string())]
        {
            let reply = server.http().await.request(method, &x0_target(), &[("origin", origin)], body).await;
            assert_eq!(reply.header("access-control-allow-origin"), told, "{method} {origin}");
            assert_eq!(reply.header("vary"), "origin");
            let refused = method == "POST" && told.is_empty();
            assert_eq!(reply.body.contains("--legacy-allow-origin"), refused, "{}", reply.body);
        }
    }
}

/// Over plain HTTP to another machine a browser does not name the site of an image.
#[tokio::test]
async fn an_image_of_any_page_acknowledges_nothing() {
    let server = TestServer::start().await;
    let seq = server.send("A", "B", json!(1)).await;
    let own = format!("http://{}/page", server.address);
    let browser = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0");
    let (language, image) = (("accept-language", "en"), ("accept", "image/avif,image/webp,*/*;q=0.8"));
    for headers in [
        &[image][..],
        &[browser, language, ("accept", "*/*")],
        &[("referer", "http://evil.example/")],
        &[("sec-fetch-site", "same-origin"), ("sec-fetch-dest", "image")],
    ] {
        for target in ["/v1/messages?wait=0&", "/v1/events?"] {
            let target = format!("{target}session=B&after={seq}");
            let reply = server.http().await.request("GET", &target, headers, "").await;
            assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"), "{target} {headers:?}");
            assert!(reply.body.contains("POST /v1/ack"), "{}", reply.body);
        }
        let target = "/v1/messages?session=B&wait=0";
        let reply = server.http().await.request("GET", target, headers, "").await;
        assert_eq!(reply.payloads(), [1], "without a cursor nothing is acknowledged");
    }
    let target = format!("/v1/messages?session=B&wait=0&after={seq}");
    let headers = [browser, language, ("referer", own.as_str())];
    assert_eq!(server.http().await.request("GET", &target, &headers, "").await.status, 200);
    assert_eq!(server.get("/v1/messages?session=B&wait=0").await.payloads(), NOTHING);
}
