//! HTTP to the letter: heads that RFC 9112 forbids, and the headers of answers.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::*;

/// Everything that is answered to these bytes, until the server closes.
async fn answers(server: &TestServer, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn a_missing_double_or_invalid_host_is_refused() {
    let server = TestServer::start().await;
    for hosts in [
        "",
        "host: x\r\nhost: x\r\n",
        "host: x\r\nhost: y\r\n",
        "host: a b\r\n",
        "host: u@x\r\n",
        "host:\r\n",
    ] {
        for target in ["/healthz", "/v1/messages?session=A&wait=0", "/nothing"] {
            // What follows a refused request is not answered.
            let twice =
                format!("GET {target} HTTP/1.1\r\n{hosts}\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
            let answer = answers(&server, &twice).await;
            assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("Host"), "{hosts:?} {answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        }
    }
    for head in
        ["HTTP/1.0\r\n", "HTTP/1.0\r\nhost: x\r\n", "HTTP/1.1\r\nhost: [::1]:80\r\nconnection: close\r\n"]
    {
        let answer = answers(&server, &format!("GET /healthz {head}\r\n")).await;
        assert_eq!(answer.get(8..12), Some(" 200"), "{head:?} {answer}");
    }
}

#[tokio::test]
async fn a_body_that_is_chunked_twice_or_has_another_coding_is_refused() {
    let server = TestServer::start().await;
    for codings in [
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
    ] {
        for path in ["/v1/messages".to_owned(), x0_target()] {
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\n{codings}\r\n2\r\n{{}}\r\n0\r\n\r\n\
                 GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
            );
            let answer = answers(&server, &request).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{codings:?} {answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        }
    }
}

#[tokio::test]
async fn json_answers_end_in_a_newline_and_are_not_sniffed_and_those_of_x0_stay_as_they_are() {
    let server = TestServer::start().await;
    let mut http = server.http().await;
    let send = json!({ "to": { "session": "A" }, "payload": 1 });
    let mut replies =
        vec![http.post("/v1/messages", send.clone()).await, http.post("/v1/messages", json!([send])).await];
    for target in [
        "/healthz",
        "/openapi.json",
        "/asyncapi.json",
        "/v1/messages?session=A&wait=0",
        "/v1/sessions/A",
        "/nothing",
        "/ws",
    ] {
        replies.push(http.get(target).await);
    }
    for reply in replies {
        assert!(reply.body.ends_with("}\n") || reply.body.ends_with("]\n"), "{}", reply.body);
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{}", reply.body);
    }
    let sent = http.post(&x0_target(), x0_set("A", "B", &json!({}))).await;
    assert_eq!(sent.body, r#"{"messages":null,"status":"ok"}"#);
}

#[tokio::test]
async fn a_method_that_is_not_taken_is_answered_with_those_that_are() {
    let server = TestServer::start().await;
    for (method, target, allowed) in [
        ("POST", "/healthz", "GET"),
        ("PUT", "/openapi.json", "GET"),
        ("DELETE", "/", "GET"),
        ("DELETE", "/v1/messages", "POST"),
        ("GET", "/v1/ack", "POST"),
        ("POST", "/v1/sessions/A", "PUT"),
        ("POST", "/docs/", "GET"),
    ] {
        let reply = server.http().await.request(method, target, &[], "").await;
        assert_eq!(reply.status, 405, "{method} {target}");
        let named = reply.header("allow").split(',').any(|known| known.trim() == allowed);
        assert!(named, "{method} {target}: {:?}", reply.header("allow"));
    }
}

#[tokio::test]
async fn a_page_that_the_browser_has_is_not_sent_again() {
    let server = TestServer::start().await;
    let mut http = server.http().await;
    for page in ["/", "/client.js", "/docs/", "/docs/search.json"] {
        let etag = http.get(page).await.header("etag").to_owned();
        for (known, status) in [
            (etag.clone(), 304),
            (format!("W/{etag}"), 304),
            (format!("\"other\", W/\"more\" ,{etag}"), 304),
            ("*".to_owned(), 304),
            ("\"other\", W/\"more\"".to_owned(), 200),
            (etag.trim_matches('"').to_owned(), 200),
        ] {
            let reply = http.request("GET", page, &[("if-none-match", known.as_str())], "").await;
            assert_eq!(reply.status, status, "{page} {known}");
        }
    }
}

/// Two proxies, or a proxy and the broker, may take another one of the two.
#[tokio::test]
async fn a_parameter_with_one_value_is_not_given_twice() {
    let server = TestServer::start().await;
    server.send("A", "B", json!(1)).await;
    for target in [
        "/v1/messages?session=A&session=B&wait=0",
        "/v1/messages?session=B&after=0&after=9007199254740991&wait=0",
        "/v1/events?session=A&session=B",
        "/v1/messages?topic=t&after.t=1&after.t=2&wait=0",
    ] {
        let reply = server.get(target).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{target}");
        assert!(reply.body.contains("twice"), "{}", reply.body);
    }
    let body = json!({ "to": { "session": "B" }, "payload": 2 });
    assert_eq!(server.post("/v1/messages?session=A&session=B", body).await.status, 400);
    assert_eq!(server.ws("?session=A&session=B").await.error().await, "bad_request");
    assert_eq!(server.get("/v1/messages?session=B&wait=0").await.payloads(), [1], "nothing was acknowledged");
    // A poll of an x0 page is held and answered whatever its address says.
    let server = TestServer::with(&["--poll-timeout", "200ms"]).await;
    let reply = server.post(&format!("{}&session=A&session=B", x0_target()), x0_poll("A")).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "{\"messages\":null}"));
}
