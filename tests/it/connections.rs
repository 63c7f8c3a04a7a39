//! Limits of connections, rate limits of sends, and timeouts of headers and bodies.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::common::*;
use crate::guarded::*;

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let server = Guarded::with(&[
        "--connections-per-address",
        "3",
        "--trust-proxy",
        "127.0.0.1",
        "--poll-timeout",
        "300ms",
    ])
    .await;
    let connect = async |forwarded: &[(&'static str, &str)], session: &str| {
        let mut ws = Ws::with_headers(server.address, "", forwarded).await;
        ws.send(json!({ "type": "hello", "token": token("ann", session) })).await;
        let answer = ws.recv().await;
        (ws, answer)
    };
    let one = [("x-forwarded-for", "6.6.6.6, 1.2.3.4")];
    let mut sockets = Vec::new();
    for n in 0..3 {
        let (ws, answer) = connect(&one, &n.to_string()).await;
        assert_eq!(answer["type"], "welcome");
        sockets.push(ws);
    }
    // These name the same client: only the last address comes from the trusted proxy.
    for forwarded in [
        &[("x-forwarded-for", "1.2.3.4")][..],
        &[("x-forwarded-for", "9.9.9.9"), ("x-forwarded-for", "1.2.3.4")],
        &[("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=7.7.7.7")],
        &[("x-forwarded-for", "1.2.3.4, 127.0.0.1")],
    ] {
        let (mut ws, answer) = connect(forwarded, "more").await;
        assert_eq!(answer["code"], "rate_limited", "{forwarded:?} {answer}");
        assert!(answer["message"].as_str().unwrap().contains("--connections-per-address"));
        assert_eq!(ws.closed().await.0, 1013);
    }
    let bearer = format!("Bearer {}", token("ann", "0"));
    for target in ["/v1/messages?wait=0", "/v1/events"] {
        let headers = [("authorization", bearer.as_str()), one[0]];
        let reply = server.http().await.request("GET", target, &headers, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (429, "rate_limited"), "{target}");
        assert_eq!(reply.header("retry-after"), "1");
    }
    // The poll of an x0 page waits until its timeout.
    server.register("x", json!({})).await;
    let begun = Instant::now();
    let reply = server.http().await.request("POST", &x0_target(), &one, x0_poll("x").to_string()).await;
    assert_eq!((reply.status, reply.json()), (200, json!({ "messages": null })));
    assert!(begun.elapsed() >= Duration::from_millis(290));
    // Another client may connect, and the same one after a connection has ended.
    assert_eq!(connect(&[("x-forwarded-for", "1.2.3.5")], "other").await.1["type"], "welcome");
    drop(sockets.pop());
    soon(async { while connect(&one, "2").await.1["type"] != "welcome" {} }).await;
    // With RFC 7239's header, the other header is ignored.
    let proxy = ["--trust-proxy", "127.0.0.1", "--proxy-header", "forwarded"];
    let server = Guarded::with(&[&["--connections-per-address", "1"][..], &proxy].concat()).await;
    let from = async |forwarded: &str, session: &str| {
        let bearer = format!("Bearer {}", token("ann", session));
        let headers =
            [("forwarded", forwarded), ("x-forwarded-for", "7.7.7.7"), ("authorization", bearer.as_str())];
        let mut ws = Ws::with_headers(server.address, "", &headers).await;
        let answer = ws.recv().await;
        (ws, answer)
    };
    let (_held, answer) = from("for=1.2.3.4", "1").await;
    assert_eq!(answer["type"], "welcome");
    assert_eq!(from("for=8.8.8.8, for=\"1.2.3.4:4711\";proto=https", "2").await.1["code"], "rate_limited");
    assert_eq!(from("for=1.2.3.5", "3").await.1["type"], "welcome");
    // The header of an untrusted peer is ignored: the peer itself is counted.
    let server = Guarded::with(&["--connections-per-address", "1"]).await;
    let _first = server.welcomed(&token("ann", "1")).await;
    let mut second = Ws::with_headers(server.address, "", &[("x-forwarded-for", "1.2.3.4")]).await;
    assert_eq!(second.closed().await.0, 1013);
}

#[tokio::test]
async fn a_proxy_that_is_not_trusted_is_logged_with_the_flag() {
    for header in ["x-forwarded-for", "forwarded"] {
        let server = TestServer::start().await;
        let log = server.log_from_here();
        for _ in 0..3 {
            let headers = [(header, "for=1.2.3.4")];
            assert_eq!(
                server
                    .http()
                    .await
                    .request("GET", "/v1/messages?session=A&wait=0", &headers, "")
                    .await
                    .status,
                200
            );
        }
        log.contains("--trust-proxy").await;
        assert_eq!(server.stop().await.matches("--trust-proxy").count(), 1, "{header}: once");
    }
}

/// Silent connections are limited too. Further connections wait, and are served when others close.
#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_served_later() {
    let server = Guarded::with(&["--connections-per-address", "1", "--header-timeout", "20s"]).await;
    // The server accepts 66 connections at once with this limit.
    let mut idle = Vec::new();
    for _ in 0..66 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    let address = server.address;
    let mut late = tokio::spawn(async move { Http::connect(address).await.get("/healthz").await.status });
    let early = tokio::time::timeout(Duration::from_millis(300), &mut late).await;
    assert!(early.is_err(), "it is held");
    idle.pop();
    assert_eq!(soon(late).await.unwrap(), 200);
}

/// Its page would stop for good. Behind a proxy that is not trusted all pages have one address.
#[tokio::test]
async fn an_x0_page_above_the_limit_of_its_address_is_served() {
    let args = ["--connections-per-address", "1", "--header-timeout", "1h", "--poll-timeout", "500ms"];
    let server = TestServer::with(&args).await;
    // So many connections are accepted at once with this limit.
    let mut busy = Vec::new();
    for _ in 0..66 {
        let mut socket = Http::connect(server.address).await;
        assert_eq!(socket.get("/healthz").await.status, 200);
        busy.push(socket);
    }
    let mut page = server.http().await;
    let forwarded = [("x-forwarded-for", "1.2.3.4"), ("content-type", "application/json")];
    for _ in 0..2 {
        let poll = page.request("POST", &x0_target(), &forwarded, x0_poll("A").to_string()).await;
        assert_eq!(x0_messages(&poll), NOTHING);
    }
    let sent = page
        .request("POST", &x0_target(), &forwarded, x0_set("B", "A", &json!({ "n": 1 })).to_string())
        .await;
    assert_eq!(sent.json()["status"], "ok");
    assert_eq!(page.x0("A").await, [json!({ "n": 1 })]);
    drop(busy);
}

#[tokio::test]
async fn connections_of_one_session_are_limited() {
    let server = Guarded::with(&["--connections-per-session", "2"]).await;
    let proof = token("ann", "s");
    let _first = server.welcomed(&proof).await;
    let second = server.welcomed(&proof).await;
    let (mut third, answer) = server.hello(&proof).await;
    assert_eq!(answer["code"], "rate_limited", "{answer}");
    assert_eq!(third.closed().await.0, 1013);
    for target in ["/v1/messages?wait=0", "/v1/events"] {
        let reply = server.call("GET", target, &proof, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (429, "rate_limited"), "{target}");
    }
    server.welcomed(&token("ann", "another")).await;
    drop(second);
    soon(async { while server.hello(&proof).await.1["type"] != "welcome" {} }).await;
}

#[tokio::test]
async fn sends_of_a_session_have_a_rate_limit_and_those_of_backends_have_none() {
    let server = Guarded::with(&["--send-rate", "1", "--send-burst", "3"]).await;
    let mut ws = server.welcomed(&token("ann", "a")).await;
    let send = |id: &str| json!({ "type": "send", "id": id, "to": { "user": "ann" }, "payload": 1 });
    let mut refused = None;
    for n in 0..4 {
        ws.send(send(&n.to_string())).await;
        let answer = loop {
            let answer = ws.recv().await;
            if answer["type"] != "message" {
                break answer;
            }
        };
        assert_eq!(answer["id"], n.to_string());
        match n {
            3 => refused = Some(answer),
            _ => assert_eq!(answer["type"], "sent", "{answer}"),
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused["code"], "rate_limited");
    assert!(refused["message"].as_str().unwrap().contains("--send-rate"), "{refused}");
    // All transports share a bucket, and each message of an array takes one token.
    let reply = server.call("POST", "/v1/messages", &token("ann", "a"), send("5")).await;
    assert_eq!((reply.status, reply.code().as_str()), (429, "rate_limited"));
    let many: Vec<Value> = (0..6).map(|n| send(&format!("b{n}"))).collect();
    let answers = server.call("POST", "/v1/messages", &token("bob", "b"), json!(many)).await.json();
    let codes: Vec<&Value> = answers.as_array().unwrap().iter().map(|one| &one["error"]["code"]).collect();
    assert_eq!(codes[..3], [&json!(null); 3]);
    assert_eq!(codes[5], "rate_limited");
    let many: Vec<Value> = (0..100).map(|n| send(&n.to_string())).collect();
    let answers = server.call("POST", "/v1/messages", KEY, json!(many)).await.json();
    assert!(answers.as_array().unwrap().iter().all(|one| one["sessions"].is_u64()), "{answers}");
    // The bucket fills again.
    soon(async {
        loop {
            ws.send(send("later")).await;
            let answer = ws.recv().await;
            match answer["type"].as_str().unwrap() {
                "message" => {}
                "sent" => break,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    })
    .await;
}

/// Requests whose head or body does not come are closed.
#[tokio::test]
async fn half_sent_requests_time_out() {
    let server = TestServer::with(&["--header-timeout", "2s"]).await;
    let mut head = TcpStream::connect(server.address).await.unwrap();
    head.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    let mut body = TcpStream::connect(server.address).await.unwrap();
    body.write_all(b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        .await
        .unwrap();
    let mut rest = Vec::new();
    soon(head.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    let mut seen = vec![0; 1024];
    let count = soon(body.read(&mut seen)).await.unwrap();
    let seen = String::from_utf8_lossy(&seen[..count]);
    assert!(seen.starts_with("HTTP/1.1 400") && seen.contains("--header-timeout"), "{seen}");
    // Endless headers are refused before they fill the memory.
    let mut large = TcpStream::connect(server.address).await.unwrap();
    let flood = async {
        large.write_all(b"GET / HTTP/1.1\r\n").await?;
        for _ in 0..10_000 {
            large.write_all(format!("x: {}\r\n", "x".repeat(1000)).as_bytes()).await?;
        }
        std::io::Result::Ok(())
    };
    assert!(soon(flood).await.is_err(), "10 MB of headers are not taken");
}

/// 500 half-sent requests and 500 sockets without a hello do not keep 100 other clients from working.
#[tokio::test]
async fn slow_clients_do_not_stop_other_clients() {
    const SLOW: usize = 500;
    let server = Guarded::with(&["--connections-per-address", "2000"]).await;
    let mut half_sent = Vec::new();
    for n in 0..SLOW {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let part: &[u8] = match n % 3 {
            0 => b"GET /ws HTTP/1.1\r\nhost: localhost\r\nupgr",
            1 => b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{\"to\":",
            _ => b"",
        };
        stream.write_all(part).await.unwrap();
        half_sent.push(stream);
    }
    let mut silent = Vec::new();
    for _ in 0..SLOW {
        silent.push(server.ws("").await);
    }
    let mut good = Vec::new();
    for n in 0..100 {
        good.push(server.welcomed(&token("ann", &format!("good-{n}"))).await);
    }
    let begun = Instant::now();
    for round in 0..5 {
        for n in 0..100 {
            let to = format!("good-{}", (n + 1) % 100);
            good[n].send_to(&to, json!([round, n])).await;
            assert_eq!(good[(n + 1) % 100].payload().await, json!([round, n]));
        }
    }
    eprintln!("500 messages, one after the other, beside 1,000 slow clients: {:?}", begun.elapsed());
    // The sockets without a hello are closed with their code.
    for ws in silent.iter_mut().take(20) {
        assert_eq!(ws.closed().await.0, 4001);
    }
}

/// The broker is stopped for longer than a silent client may be. Its clients were there all the time.
#[tokio::test]
async fn a_pause_of_the_broker_closes_no_live_client() {
    const CLIENTS: usize = 20;
    let server = TestServer::with(&["--heartbeat", "2s", "--durability", "memory"]).await;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let mut client = server.session(&format!("C{n}")).await;
        // Reading answers pings.
        clients.push(tokio::spawn(async move { client.message().await["payload"].clone() }));
    }
    server.signal(19);
    // Longer than two heartbeats, and than the time to the next tick with them.
    tokio::time::sleep(Duration::from_secs(7)).await;
    server.signal(18);
    for n in 0..CLIENTS {
        server.send("A", &format!("C{n}"), json!(n)).await;
    }
    for (n, client) in clients.into_iter().enumerate() {
        assert_eq!(soon(client).await.expect("still connected"), n);
    }
}

/// A frame takes longer than a client may be silent. Its bytes show that the client lives.
#[tokio::test]
async fn a_frame_that_comes_slowly_is_waited_for() {
    let server = TestServer::with(&["--heartbeat", "1s", "--durability", "memory"]).await;
    let mut stream = upgrade(TcpStream::connect(server.address).await.unwrap(), "?session=A", "").await;
    let text =
        json!({ "type": "send", "to": { "session": "B" }, "payload": "x".repeat(200_000) }).to_string();
    // A text frame whose mask is zero.
    let mut frame = vec![0x81, 0xff];
    frame.extend((text.len() as u64).to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    // Five heartbeats: the pace is what this test is about.
    for part in frame.chunks(frame.len() / 10) {
        stream.write_all(part).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut b = server.session("B").await;
    assert_eq!(b.payload().await.as_str().map(str::len), Some(200_000));
}

/// A client takes messages more slowly than they come. The pings wait behind them.
#[tokio::test]
async fn a_slow_reader_that_answers_pings_gets_everything() {
    const MESSAGES: usize = 10;
    let server = TestServer::with(&["--heartbeat", "1s", "--durability", "memory"]).await;
    let stream = upgrade(connect_with_small_buffer(server.address), "?session=S", "").await;
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let ((mut from_server, mut to_server), (mut from_client, mut to_client)) =
        (tokio::io::split(stream), tokio::io::split(theirs));
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    // About 1 MB in a second.
    tokio::spawn(async move {
        let mut part = vec![0; 1 << 15];
        while let Ok(count @ 1..) = from_server.read(&mut part).await {
            if to_client.write_all(&part[..count]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1 + count as u64 / 1000)).await;
        }
    });
    let socket = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    let mut slow = Ws { socket, epoch: String::new() };
    assert_eq!(slow.recv().await["type"], "welcome");
    for n in 0..MESSAGES {
        server.send("A", "S", json!([n, "x".repeat(1_000_000)])).await;
    }
    for n in 0..MESSAGES {
        assert_eq!(slow.payload().await[0], n);
    }
}
