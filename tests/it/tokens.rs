//! Tokens: valid and invalid ones, rotation of keys, and sockets whose token expires.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

/// Checks that a token is refused by every call.
async fn refused(server: &Guarded, token: &str, why: &str) {
    let (mut ws, answer) = server.hello(token).await;
    assert_eq!(
        (&answer["type"], &answer["code"]),
        (&json!("error"), &json!("unauthorized")),
        "{why}: {answer}"
    );
    assert!(answer["message"].as_str().unwrap().contains(why), "{why}: {answer}");
    assert_eq!(ws.closed().await.0, 4501, "{why}");
    for (method, target) in
        [("GET", "/v1/messages?wait=0"), ("GET", "/v1/events"), ("POST", "/v1/messages"), ("POST", "/v1/ack")]
    {
        let body = r#"{"to":{"user":"ann"},"payload":1,"seq":1}"#;
        let reply = server.call(method, target, token, body).await;
        assert_eq!((reply.status, reply.code().as_str()), (401, "unauthorized"), "{why}: {method} {target}");
        assert!(reply.header("www-authenticate").starts_with("Bearer"));
    }
    let reply = server.call("PUT", "/v1/sessions/A", token, "{}").await;
    assert_eq!(reply.status, 401, "{why}");
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[tokio::test]
async fn bad_tokens_are_refused_everywhere() {
    let (rsa_dir, rsa) = (tempfile::tempdir().unwrap(), KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
    let public = rsa_dir.path().join("rsa.pem");
    std::fs::write(&public, rsa.public_key_pem()).unwrap();
    let audience =
        ["--token-key-file", public.to_str().unwrap(), "--token-audience", "x0", "--token-issuer", "idp"];
    let server = Guarded::with(&audience).await;
    let claims = |more: Value| {
        let mut claims = json!({ "sub": "ann", "sid": "A", "exp": now() + 60, "aud": "x0", "iss": "idp" });
        for (name, value) in more.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        claims
    };
    let good = signed(&claims(json!({})));
    server.welcomed(&good).await;
    server.welcomed(&signed(&claims(json!({ "aud": ["other", "x0"] })))).await;
    // Within the allowed clock skew.
    server.welcomed(&signed(&claims(json!({ "exp": now() - 25, "nbf": now() + 25 })))).await;
    for (more, why) in [
        (json!({ "exp": now() - 40 }), "expired"),
        (json!({ "exp": null }), "exp"),
        (json!({ "exp": "soon" }), "exp"),
        (json!({ "nbf": now() + 100 }), "not valid yet"),
        (json!({ "aud": "other" }), "another audience"),
        (json!({ "aud": null }), "aud"),
        (json!({ "iss": "evil" }), "another issuer"),
        (json!({ "iss": null }), "iss"),
        (json!({ "sub": null }), "sub"),
        (json!({ "sub": "" }), "sub"),
        (json!({ "sub": 7 }), "claims"),
        (json!({ "sid": "a\nb" }), "sid"),
        (json!({ "sid": "x".repeat(257) }), "257"),
        (json!({ "send": "user:*" }), "claims"),
        (json!({ "send": ["everybody"] }), "begin with"),
        (json!({ "topics": [1] }), "claims"),
    ] {
        refused(&server, &signed(&claims(more)), why).await;
    }
    // Forged: another secret, another payload, another signature, no signature.
    let forged = EncodingKey::from_secret(b"another secret that is as long as a secret has to be");
    let parts: Vec<&str> = good.split('.').collect();
    let other = part(&claims(json!({ "sub": "bob" })));
    let none = part(&json!({ "alg": "none", "typ": "JWT" }));
    let mut guesses = [
        encode(&Header::new(Algorithm::HS256), &claims(json!({})), &forged).unwrap(),
        format!("{}.{}.{}", parts[0], other, parts[2]),
        format!("{}.{}.{}", parts[0], parts[1], &parts[2][..parts[2].len() - 2]),
        format!("{}.{}.", parts[0], parts[1]),
        // The public key of RSA used as a secret.
        encode(
            &Header::new(Algorithm::HS256),
            &claims(json!({})),
            &EncodingKey::from_secret(rsa.public_key_pem().as_bytes()),
        )
        .unwrap(),
    ]
    .map(|token| (token, "signature"))
    .to_vec();
    for token in [format!("{none}.{}.", parts[1]), format!("{none}.{}.{}", parts[1], parts[2])] {
        guesses.push((token, "nor a token"));
    }
    // An algorithm without a key. An extension that a reader must know. Too large, and not a token.
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    guesses.push((encode(&Header::new(Algorithm::HS512), &claims(json!({})), &secret).unwrap(), "no key"));
    let critical = Header { crit: Some(vec!["b64".to_owned()]), ..Header::new(Algorithm::HS256) };
    guesses.push((encode(&critical, &claims(json!({})), &secret).unwrap(), "crit"));
    guesses.push((signed(&claims(json!({ "fill": "x".repeat(8000) }))), "8192"));
    guesses.extend(["x", "a.b.c", "..", &good[1..], "Bearer"].map(|text| (text.to_owned(), "nor a token")));
    // One address may show so few of these to a server.
    for guesses in guesses.chunks(3) {
        let server = Guarded::with(&audience).await;
        for (token, why) in guesses {
            refused(&server, token, why).await;
        }
    }
    // A token in the query is refused, since logs contain it.
    let mut ws = server.ws(&format!("?session=A&token={good}")).await;
    assert_eq!(ws.error().await, "bad_request");
    assert_eq!(ws.closed().await.0, 4500);
}

/// Programs read tokens and keys from files, whose last line ends with a newline.
#[tokio::test]
async fn white_space_around_tokens_and_keys_is_ignored_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("padded");
    let other = "another secret that is as long as a secret has to be";
    std::fs::write(&path, format!("\n  {other}\r\n")).unwrap();
    let server = Guarded::with(&["--token-key-file", path.to_str().unwrap()]).await;
    let claims = json!({ "sub": "ann", "sid": "A", "exp": now() + 60 });
    let by_other =
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(other.as_bytes()));
    for credential in [token("ann", "A"), by_other.unwrap(), KEY.to_owned()] {
        for padded in [format!("{credential}\n"), format!(" \t{credential}\r\n"), credential.clone()] {
            let mut ws = server.welcomed(&padded).await;
            // A renewal is a `hello` as well.
            ws.send(json!({ "type": "hello", "token": format!("{padded}\n") })).await;
            loop {
                match ws.recv().await["type"].as_str() {
                    Some("welcome") => break,
                    Some("message") => {}
                    other => panic!("{padded:?}: {other:?}"),
                }
            }
            let spaces = padded.replace(['\r', '\n'], " ");
            let reply =
                server.call("POST", "/v1/messages", &spaces, r#"{"to":{"user":"ann"},"payload":1}"#).await;
            assert_eq!(reply.status, 200, "{padded:?}: {}", reply.body);
        }
    }
}

#[tokio::test]
async fn all_four_algorithms_are_accepted_each_with_its_own_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut args = Vec::new();
    let mut tokens = vec![token("ann", "HS256")];
    let kinds = [
        ("RS256", Algorithm::RS256, &PKCS_RSA_SHA256),
        ("ES256", Algorithm::ES256, &PKCS_ECDSA_P256_SHA256),
        ("EdDSA", Algorithm::EdDSA, &PKCS_ED25519),
    ];
    for (name, algorithm, kind) in kinds {
        let pair = KeyPair::generate_for(kind).unwrap();
        std::fs::write(path(name), pair.public_key_pem()).unwrap();
        args.extend(["--token-key-file".to_owned(), path(name)]);
        let pem = pair.serialize_pem();
        let key = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem.as_bytes()),
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem.as_bytes()),
            _ => EncodingKey::from_ed_pem(pem.as_bytes()),
        };
        let claims = json!({ "sub": "ann", "sid": name, "exp": now() + 60 });
        tokens.push(encode(&Header::new(algorithm), &claims, &key.unwrap()).unwrap());
        // A token of the command is accepted.
        std::fs::write(path("private"), pem).unwrap();
        let made = command(&[
            "token",
            "--key-file",
            &path("private"),
            "--user",
            "bob",
            "--session",
            &format!("{name}-made"),
        ]);
        tokens.push(made.unwrap().trim().to_owned());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = Guarded::with(&args).await;
    for token in tokens {
        server.welcomed(&token).await;
    }
}

#[tokio::test]
async fn keys_that_cannot_be_used_are_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let private = KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem();
    for (content, why) in [
        ("short", "at least 32"),
        (private.as_str(), "private key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "no public key"),
        ("{]", "JWK"),
        (r#"{"keys":[]}"#, "no usable key"),
    ] {
        std::fs::write(&path, content).unwrap();
        let path = path.to_str().unwrap();
        let said = command(&[
            "--listen",
            "127.0.0.1:0",
            "--durability",
            "memory",
            "--auth",
            "token",
            "--token-key-file",
            path,
        ]);
        let said = said.unwrap_err();
        assert!(said.contains("--token-key-file") && said.contains(why), "{why}: {said}");
    }
    let said =
        command(&["--listen", "127.0.0.1:0", "--durability", "memory", "--auth", "token"]).unwrap_err();
    assert!(said.contains("--token-key-file") && said.contains("--api-key-file"), "{said}");
}

/// Waits until this holds. The server looks for changed files every second.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    soon(async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn rotating_keys_keeps_sockets() {
    let server = Guarded::with(&["--heartbeat", "5s"]).await;
    let mut old = server.welcomed(&token("ann", "A")).await;
    let mut backend = server.welcomed(KEY).await;
    let backend = tokio::spawn(async move { backend.closed().await.0 });
    let other = "another secret, which takes the place of the first one";
    let fresh = |session: &str| {
        let claims = json!({ "sub": "ann", "sid": session, "exp": now() + 60 });
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(other.as_bytes())).unwrap()
    };
    std::fs::write(server.path("secret"), other).unwrap();
    until(async || {
        // A read answers the pings of the server.
        old.ping().await;
        server.hello(&fresh("B")).await.1["type"] == "welcome"
    })
    .await;
    // The attempts above count as wrong ones.
    let refused = server.hello(&token("ann", "C")).await.1["code"].clone();
    assert!(refused == "unauthorized" || refused == "rate_limited", "{refused}");
    old.ping().await;
    // A file without a key does not replace the key.
    let log = server.log_from_here();
    std::fs::write(server.path("secret"), "x").unwrap();
    log.contains("cannot be read again").await;
    let mut new = server.welcomed(&fresh("D")).await;
    new.send_to("B", json!(1)).await;
    // API keys are rotated in the same way.
    let body = json!({ "to": { "user": "ann" }, "payload": 1 });
    assert_eq!(server.call("POST", "/v1/messages", KEY, &body).await.status, 200);
    let rotated = "a new key of the backend 0123456789";
    std::fs::write(server.path("keys.toml"), key_file().replace(KEY, rotated)).unwrap();
    until(async || server.call("POST", "/v1/messages", rotated, &body).await.status == 200).await;
    let refused = server.call("POST", "/v1/messages", KEY, &body).await.status;
    assert!(refused == 401 || refused == 429, "{refused}");
    // The sockets of a removed API key are closed.
    assert_eq!(soon(backend).await.unwrap(), 4501);
    let log = server.stop().await;
    assert!(log.contains("cannot be read again") && !log.contains(other) && !log.contains(rotated), "{log}");
}

/// An empty file revokes all of its keys, once it has stayed empty for five seconds. A missing one revokes none.
#[tokio::test]
async fn an_emptied_key_file_revokes_its_keys_and_a_missing_one_does_not() {
    let server = Guarded::with(&["--heartbeat", "5s"]).await;
    let body = json!({ "to": { "user": "ann" }, "payload": 1 });
    server.register("A", json!({ "user": "ann" })).await;
    let accepted = async || {
        let by_key = server.call("POST", "/v1/messages", KEY, &body).await.status == 200;
        let by_token = server.call("POST", "/v1/messages", &token("ann", "A"), &body).await.status == 200;
        (by_key, by_token)
    };
    for name in ["secret", "keys.toml"] {
        let log = server.log_from_here();
        std::fs::remove_file(server.path(name)).unwrap();
        log.contains("cannot be read again").await;
    }
    assert_eq!(accepted().await, (true, true), "the files are missing");
    let log = server.log_from_here();
    std::fs::write(server.path("keys.toml"), "# nobody\n").unwrap();
    log.contains("stayed empty").await;
    until(async || accepted().await == (false, true)).await;
    for empty in ["", r#"{"keys":[]}"#] {
        std::fs::write(server.path("secret"), SECRET).unwrap();
        until(async || accepted().await == (false, true)).await;
        let log = server.log_from_here();
        std::fs::write(server.path("secret"), empty).unwrap();
        log.contains("stayed empty").await;
        until(async || accepted().await == (false, false)).await;
    }
}

/// A local server of a JWK set. The set can be changed, and the requests are counted.
async fn jwks_server() -> (String, Arc<Mutex<(String, usize)>>) {
    let state = Arc::new(Mutex::new((r#"{"keys":[]}"#.to_owned(), 0)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let shared = Arc::clone(&state);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let service = service_fn(move |_| {
                    let mut shared = shared.lock().unwrap();
                    shared.1 += 1;
                    let body = Full::new(Bytes::from(shared.0.clone()));
                    async { Ok::<_, Infallible>(hyper::Response::new(body)) }
                });
                _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (url, state)
}

/// A key with an id: its JWK, and a function that signs with it.
fn named_key(kid: &str) -> (Jwk, impl Fn(&str, Option<&str>) -> String) {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
    jwk.common.key_id = Some(kid.to_owned());
    let sign = move |session: &str, kid: Option<&str>| {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::ES256) };
        encode(&header, &json!({ "sub": "ann", "sid": session, "exp": now() + 60 }), &key).unwrap()
    };
    (jwk, sign)
}

#[tokio::test]
async fn a_jwk_set_is_fetched_and_rotated() {
    let (url, state) = jwks_server().await;
    let server = Guarded::with(&["--token-jwks-url", &url]).await;
    let (one, sign_one) = named_key("one");
    let (two, sign_two) = named_key("two");
    // There is no key yet, so the error is temporary.
    let (mut ws, answer) = server.hello(&sign_one("A", Some("one"))).await;
    assert_eq!(answer["code"], "unavailable", "{answer}");
    assert_eq!(ws.closed().await.0, 1013);
    let serve = |keys: &[&Jwk]| {
        let keys = keys.iter().map(|key| (*key).clone()).collect();
        state.lock().unwrap().0 = serde_json::to_string(&JwkSet { keys }).unwrap();
    };
    serve(&[&one]);
    // A token with an unknown key causes a fetch.
    let mut socket = server.welcomed(&sign_one("A", Some("one"))).await;
    server.welcomed(&sign_one("B", None)).await;
    serve(&[&one, &two]);
    server.welcomed(&sign_two("C", Some("two"))).await;
    // A token that is signed with another key than it names is refused.
    let (_, answer) = server.hello(&sign_one("D", Some("two"))).await;
    assert!(answer["message"].as_str().unwrap().contains("signature"), "{answer}");
    serve(&[&two]);
    let asked = state.lock().unwrap().1;
    // However many tokens name unknown keys, the set is fetched at most every two seconds.
    let (mut tries, begun) = (0, std::time::Instant::now());
    while server.hello(&sign_one("E", Some("three"))).await.1["type"] == "error" && tries < 3 {
        tries += 1;
    }
    let most = begun.elapsed().as_secs() as usize / 2 + 2;
    assert!(state.lock().unwrap().1 - asked <= most, "{} fetches", state.lock().unwrap().1 - asked);
    assert_eq!(server.hello(&sign_one("F", Some("one"))).await.1["code"], "unauthorized");
    server.welcomed(&sign_two("G", Some("two"))).await;
    socket.ping().await;
    // Without its server, the known keys stay valid.
    state.lock().unwrap().0 = "gone".to_owned();
    assert_eq!(server.hello(&sign_one("H", Some("four"))).await.1["code"], "unauthorized");
    server.welcomed(&sign_two("I", Some("two"))).await;
}

#[tokio::test]
async fn keys_of_a_jwk_set_that_cannot_be_fetched_prove_only_for_the_max_age() {
    let (url, state) = jwks_server().await;
    let (one, sign) = named_key("one");
    state.lock().unwrap().0 = serde_json::to_string(&JwkSet { keys: vec![one] }).unwrap();
    let server = Guarded::with(&["--token-jwks-url", &url, "--token-jwks-max-age", "10s"]).await;
    server.welcomed(&sign("A", Some("one"))).await;
    state.lock().unwrap().0 = "gone".to_owned();
    until(async || {
        let answer = server.hello(&sign("B", Some("one"))).await.1;
        answer["code"] == "unavailable"
    })
    .await;
}

#[tokio::test]
async fn a_set_without_keys_revokes_the_keys_that_it_held() {
    let (url, state) = jwks_server().await;
    let (one, sign) = named_key("one");
    state.lock().unwrap().0 = serde_json::to_string(&JwkSet { keys: vec![one] }).unwrap();
    let server = Guarded::with(&["--token-jwks-url", &url, "--token-jwks-refresh", "1s"]).await;
    server.welcomed(&sign("A", Some("one"))).await;
    state.lock().unwrap().0 = r#"{"keys":[]}"#.to_owned();
    until(async || {
        let answer = server.hello(&sign("B", Some("one"))).await.1;
        answer["code"] == "unauthorized"
    })
    .await;
}

#[tokio::test]
async fn a_socket_whose_token_expires_is_told_and_closed_unless_it_brings_a_fresh_one() {
    let server = Guarded::start().await;
    // Five seconds before the allowed clock skew is over.
    let stale = |session: &str| token_with("ann", session, json!({ "exp": now() - 25, "topics": ["*"] }));
    let mut left = server.welcomed(&stale("A")).await;
    let mut renewed = server.welcomed(&stale("B")).await;
    for socket in [&mut left, &mut renewed] {
        assert_eq!(socket.error().await, "unauthorized");
    }
    renewed.send(json!({ "type": "subscribe", "topic": "news" })).await;
    assert_eq!(renewed.recv().await["type"], "subscribed");
    // An invalid token changes nothing, nor does a token of another user or session.
    renewed.send(json!({ "type": "hello", "token": "x" })).await;
    assert_eq!(renewed.error().await, "unauthorized");
    renewed.send(json!({ "type": "hello", "token": token("ann", "C") })).await;
    assert_eq!(renewed.error().await, "forbidden");
    renewed.send(json!({ "type": "hello", "token": token("eve", "B") })).await;
    assert_eq!(renewed.error().await, "forbidden");
    renewed.send(json!({ "type": "hello", "token": token("ann", "B") })).await;
    assert_eq!(renewed.recv().await["type"], "welcome");
    // A subscription that the fresh token does not allow ends.
    let ended = renewed.recv().await;
    assert_eq!((&ended["type"], &ended["topic"]), (&json!("unsubscribed"), &json!("news")));
    let (code, reason) = left.closed().await;
    assert_eq!(code, 4501);
    assert!(reason.contains("expired"), "{reason}");
    // The renewed socket outlives the other one.
    tokio::time::sleep(Duration::from_secs(1)).await;
    renewed.ping().await;
}

/// A token without a session gets a new session and keeps it.
#[tokio::test]
async fn a_token_without_a_session_gets_one_of_its_own() {
    let server = Guarded::start().await;
    let token = signed(&json!({ "sub": "ann", "exp": now() + 60 }));
    let (mut first, welcome) = server.hello(&token).await;
    let (_, second) = server.hello(&token).await;
    let session = welcome["session"].as_str().unwrap().to_owned();
    assert!(session.len() >= 20 && second["session"] != session.as_str(), "{welcome}");
    assert_eq!(welcome["user"], "ann");
    // A poll without a session is told its new one. An ack without a session is refused.
    let polled = server.call("GET", "/v1/messages?wait=0", &token, "").await.json();
    assert!(
        polled["session"].as_str().unwrap().starts_with("s-") && polled["handle"].is_string(),
        "{polled}"
    );
    assert_eq!(server.call("POST", "/v1/ack", &token, r#"{"seq":0}"#).await.code(), "bad_request");
    let body = json!({ "to": { "user": "ann" }, "payload": "hi" });
    let sent = server.call("POST", &format!("/v1/messages?session={session}"), &token, &body).await;
    assert_eq!(sent.json(), json!({ "sessions": 3 }));
    let message = first.message().await;
    assert_eq!((&message["from"], &message["payload"]), (&json!("ann"), &json!("hi")));
    let polled = server.call("GET", &format!("/v1/messages?session={session}&wait=0"), &token, "").await;
    assert_eq!(polled.payloads(), ["hi"]);
    // The session stays with its user, also after its registration has expired.
    let moments = signed(&json!({ "sub": "ann", "exp": now() - 25 }));
    let (_, brief) = server.hello(&moments).await;
    let forgotten = format!("/v1/messages?session={}&wait=0", brief["session"].as_str().unwrap());
    let looked = format!("/v1/sessions/{}", brief["session"].as_str().unwrap());
    soon(async { while server.call("GET", &looked, KEY, "").await.status == 200 {} }).await;
    assert_eq!(server.call("GET", &forgotten, &token, "").await.status, 200);
    let eve = signed(&json!({ "sub": "eve", "exp": now() + 60 }));
    for target in [format!("/v1/messages?session={session}&wait=0"), forgotten] {
        let reply = server.call("GET", &target, &eve, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
    }
}
