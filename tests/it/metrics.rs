//! `/metrics`, and what is made of it: the table in the documentation, the alert rules, the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::common::*;
use crate::guarded::*;

const PAGE: &str = include_str!("../../web/docs/operating.md");
const ALERTS: &str = include_str!("../../docker/alerts.yaml");
const DASHBOARD: &str = include_str!("../../docker/dashboard.json");

/// The samples of a scrape, each by its name and labels as they are written.
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
        };
        Self(samples.map(sample).collect())
    }

    pub async fn new(server: &TestServer) -> Self {
        let reply = server.get("/metrics").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        Self::of(&reply.body)
    }

    pub fn value(&self, name: &str) -> f64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The names of all samples, without labels.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.keys().map(|name| name.split('{').next().unwrap()).collect()
    }
}

/// A sample with its bound, if it has one, as one way to write the number: the formats have two.
fn with_plain_bound(name: String) -> String {
    let Some((before, bound)) = name.split_once("le=\"") else { return name };
    let (bound, after) = bound.split_once('"').unwrap();
    format!("{before}le=\"{}\"{after}", bound.parse::<f64>().unwrap())
}

/// How much a metric grows by something.
async fn growth(server: &TestServer, names: &[&str], work: impl Future<Output = ()>) -> Vec<f64> {
    let before = Scrape::new(server).await;
    work.await;
    let after = Scrape::new(server).await;
    names.iter().map(|name| after.value(name) - before.value(name)).collect()
}

/// Waits until a metric has this value.
pub async fn until(server: &TestServer, name: &str, value: f64) {
    soon(async { while Scrape::new(server).await.value(name) != value {} }).await;
}

/// The families of a text, and their types.
fn families(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

/// Words that are names of metrics.
fn metrics_of(text: &str) -> BTreeSet<&str> {
    let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let words = text.split(|char: char| !is_part(char));
    words.filter(|word| word.starts_with("x0_msg_") || word.starts_with("process_")).collect()
}

/// A broker with a certificate and a port for operators, and the address of that.
async fn with_everything(dir: &Path, args: &[&str]) -> (TestServer, std::net::SocketAddr) {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert, certificate.cert.pem()).unwrap();
    std::fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
    let tls = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let server =
        TestServer::at(&dir.join("store"), &[&tls, &["--ops-listen", "127.0.0.1:0"][..], args].concat())
            .await;
    let address = ops_address(&server);
    (server, address)
}

/// The address of the port of operators, from the log.
fn ops_address(server: &TestServer) -> std::net::SocketAddr {
    let log = server.log_so_far();
    let line = log.lines().find(|line| line.contains("operators are served")).expect("the port is open");
    serde_json::from_str::<Value>(line).unwrap()["address"].as_str().unwrap().parse().unwrap()
}

/// Runs promtool, of the Debian package `prometheus`, with this on its standard input.
async fn promtool(args: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is there: apt-get install prometheus");
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = soon(child.wait_with_output()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn both_formats_are_as_prometheus_reads_them() {
    let server = TestServer::start().await;
    server.send("B", "A", json!(1)).await;
    let plain = server.get("/metrics").await;
    assert_eq!(plain.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let (fine, said) = promtool(&["check", "metrics"], &plain.body).await;
    assert!(fine && said.is_empty(), "{said}");
    let accept = [("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")];
    let open = server.http().await.request("GET", "/metrics", &accept, "").await;
    assert_eq!(open.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.body.ends_with("\n# EOF\n"));
    let names = |text| Scrape::of(text).0.into_keys().map(with_plain_bound).collect::<BTreeSet<_>>();
    assert_eq!(names(&open.body), names(&plain.body), "both have the same samples");
}

#[tokio::test]
async fn messages_are_counted_by_transport() {
    let server = TestServer::start().await;
    let mut reader = server.session("A").await;
    let mut sender = server.session("B").await;
    let names = [
        r#"x0_msg_messages_accepted_total{transport="websocket"}"#,
        r#"x0_msg_messages_accepted_total{transport="http"}"#,
        r#"x0_msg_messages_accepted_total{transport="legacy"}"#,
        r#"x0_msg_messages_delivered_total{transport="websocket"}"#,
        r#"x0_msg_messages_delivered_total{transport="poll"}"#,
        r#"x0_msg_messages_delivered_total{transport="legacy"}"#,
        "x0_msg_committed_messages_total",
        "x0_msg_append_commit_seconds_count",
        r#"x0_msg_messages_refused_total{transport="http",code="not_found"}"#,
        r#"x0_msg_messages_refused_total{transport="websocket",code="bad_request"}"#,
        r#"x0_msg_limit_refusals_total{limit="max_ttl"}"#,
    ];
    let work = async {
        for n in 0..3 {
            sender
                .send(json!({ "type": "send", "id": n.to_string(), "to": { "session": "A" }, "payload": n }))
                .await;
            assert_eq!(sender.recv().await["type"], "sent");
            assert_eq!(reader.payload().await, n);
        }
        let to = |session: &str| json!({ "to": { "session": session }, "payload": 1 });
        assert_eq!(server.post("/v1/messages", json!([to("C"), to("C")])).await.status, 200);
        assert_eq!(server.get("/v1/messages?session=C&wait=0").await.payloads(), [json!(1), json!(1)]);
        server.post(&x0_target(), x0_set("B", "D", &json!({ "n": 1 }))).await;
        assert_eq!(server.http().await.x0("D").await.len(), 1);
        let nobody = json!({ "to": { "user": "nobody" }, "payload": 1 });
        assert_eq!(server.post("/v1/messages", nobody).await.status, 404);
        sender.send(json!({ "type": "send", "to": { "session": "A" }, "payload": 1, "ttl": 1e9 })).await;
        assert_eq!(sender.recv().await["code"], "bad_request");
    };
    let grown = growth(&server, &names, work).await;
    assert_eq!(grown, [3.0, 2.0, 1.0, 3.0, 2.0, 1.0, 6.0, 6.0, 1.0, 1.0, 1.0]);
}

/// What is larger than `--max-payload` and all that may be around it.
fn too_large() -> Value {
    json!("x".repeat(200_000))
}

#[tokio::test]
async fn a_refusal_is_counted_at_each_door() {
    let server = TestServer::with(&["--max-payload", "1024"]).await;
    let names = [
        r#"x0_msg_limit_refusals_total{limit="max_payload"}"#,
        r#"x0_msg_refusals_total{transport="http",code="too_large"}"#,
        r#"x0_msg_refusals_total{transport="legacy",code="too_large"}"#,
        r#"x0_msg_refusals_total{transport="websocket",code="too_large"}"#,
        r#"x0_msg_refusals_total{transport="http",code="forbidden"}"#,
        r#"x0_msg_refusals_total{transport="http",code="bad_request"}"#,
        r#"x0_msg_refusals_total{transport="http",code="not_found"}"#,
        r#"x0_msg_refusals_total{transport="legacy",code="bad_request"}"#,
    ];
    let work = async {
        let send = |payload: Value| json!({ "to": { "session": "B" }, "payload": payload });
        assert_eq!(server.post("/v1/messages?session=A", send(too_large())).await.status, 413);
        let body = x0_set("A", "B", &json!({ "x": too_large() }));
        let reply = server.post(&x0_target(), body).await;
        assert_eq!(reply.json()["exception_id"], "too_large");
        let mut ws = server.session("A").await;
        ws.send(json!({ "type": "send", "to": { "session": "B" }, "payload": too_large() })).await;
        assert_eq!(ws.closed().await.0, 1009);
        // A message that is too large, in a body that is not.
        assert_eq!(server.post("/v1/messages?session=A", send(json!("x".repeat(2_000)))).await.status, 413);
        let stream = soon(tokio::net::TcpStream::connect(server.address)).await.unwrap();
        assert_eq!(Http::on(stream, "rebind.example").await.get("/v1/messages?session=A").await.status, 421);
        assert_eq!(server.http().await.request("DELETE", "/v1/messages", &[], "").await.status, 405);
        let nobody = json!({ "to": { "user": "nobody" }, "payload": 1 });
        assert_eq!(server.post("/v1/messages", json!([send(json!(1)), nobody])).await.status, 200);
        assert_eq!(server.post(&x0_target(), "no JSON").await.status, 400);
    };
    assert_eq!(growth(&server, &names, work).await, [4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
}

#[tokio::test]
async fn an_answer_that_is_given_again_is_counted() {
    let server = TestServer::start().await;
    let first = server.send("B", "A", json!(1)).await;
    server.send("B", "A", json!(2)).await;
    server.send("B", "D", json!({ "n": 1 })).await;
    let names = [
        r#"x0_msg_redeliveries_total{transport="poll"}"#,
        r#"x0_msg_redeliveries_total{transport="legacy"}"#,
    ];
    let work = async {
        let poll =
            async |after: &str| server.get(&format!("/v1/messages?session=A&wait=0{after}")).await.payloads();
        assert_eq!(poll("").await, [1, 2]);
        // The answer came, but not all of it was handled.
        assert_eq!(poll(&format!("&after={first}")).await, [2]);
        // A repeated request shows that its answer was lost.
        let target = x0_target();
        for _ in 0..2 {
            let reply = server.http().await.post(&target, x0_poll("D")).await;
            assert_eq!(x0_messages(&reply).len(), 1);
        }
    };
    assert_eq!(growth(&server, &names, work).await, [1.0, 1.0]);
}

#[tokio::test]
async fn a_publication_counts_once_for_each_reader_of_its_topic() {
    let server = TestServer::start().await;
    let mut readers = Vec::new();
    for n in 0..6 {
        let mut reader = server.session(&format!("R{n}")).await;
        reader.send(json!({ "type": "subscribe", "topic": "news" })).await;
        assert_eq!(reader.recv().await["type"], "subscribed");
        readers.push(reader);
    }
    until(&server, r#"x0_msg_subscribers{kind="topic",transport="websocket"}"#, 6.0).await;
    let delivered = r#"x0_msg_messages_delivered_total{transport="websocket"}"#;
    let grown = growth(&server, &["x0_msg_delivery_seconds_count"], async {
        for n in 0..20 {
            let message = json!({ "to": { "topic": "news" }, "payload": n });
            assert_eq!(server.post("/v1/messages", message).await.status, 200);
            for reader in &mut readers {
                assert_eq!(reader.payload().await, n);
            }
        }
        // It is counted after it is written.
        until(&server, delivered, 120.0).await;
    })
    .await;
    assert_eq!(grown, [6.0], "the first message is timed, for each reader");
}

#[tokio::test]
async fn what_is_stored_and_who_reads_is_told() {
    let server = TestServer::start().await;
    for n in 0..3 {
        server.send("B", "A", json!(n)).await;
    }
    server.send("B", "C", json!(1)).await;
    server.post("/v1/messages", json!({ "to": { "topic": "news" }, "payload": 1 })).await;
    let scrape = Scrape::new(&server).await;
    let stored = |kind: &str| scrape.value(&format!("x0_msg_stored_messages{{kind=\"{kind}\"}}"));
    assert_eq!((stored("mailbox"), stored("topic")), (4.0, 1.0));
    assert_eq!((scrape.value("x0_msg_mailboxes"), scrape.value("x0_msg_topics")), (2.0, 1.0));
    assert!(scrape.value("x0_msg_stored_bytes") > 0.0);
    let age = scrape.value("x0_msg_oldest_unread_seconds");
    assert!(age > 0.0 && age < SOON.as_secs_f64(), "{age}");
    assert_eq!((scrape.value("x0_msg_ready"), scrape.value("x0_msg_failing")), (1.0, 0.0));

    let mut http = server.http().await;
    let poll = tokio::spawn(async move { http.get("/v1/messages?session=P&wait=30").await });
    until(&server, r#"x0_msg_waiting_polls{transport="poll"}"#, 1.0).await;
    server.send("B", "P", json!("now")).await;
    assert_eq!(soon(poll).await.unwrap().payloads(), ["now"]);
    until(&server, r#"x0_msg_waiting_polls{transport="poll"}"#, 0.0).await;

    let names = ["x0_msg_messages_acknowledged_total"];
    let grown = growth(&server, &names, async { drop(server.read_all("A").await) }).await;
    assert_eq!(grown, [3.0]);
}

#[tokio::test]
async fn credentials_that_are_not_accepted_are_counted() {
    let server = Guarded::with(&["--ops-listen", "127.0.0.1:0"]).await;
    let mut ops = Http::connect(ops_address(&server)).await;
    let expired = signed(&json!({ "sub": "ann", "sid": "A", "exp": now() - 3600 }));
    for (bearer, times) in [("not known", 2), (expired.as_str(), 1)] {
        for _ in 0..times {
            assert_eq!(server.call("GET", "/v1/messages?wait=0", bearer, "").await.status, 401);
        }
    }
    let scrape = Scrape::of(&ops.get("/metrics").await.body);
    let rejected =
        |reason: &str| scrape.value(&format!("x0_msg_credentials_rejected_total{{reason=\"{reason}\"}}"));
    assert_eq!((rejected("unknown"), rejected("invalid"), rejected("too_many")), (2.0, 1.0, 0.0));
    assert_eq!(scrape.value(r#"x0_msg_refusals_total{transport="http",code="unauthorized"}"#), 3.0);
    // A look-up is for several kinds of callers. A wrong key is one wrong key.
    for target in ["/v1/sessions/A", "/v1/topics/news"] {
        let before = Scrape::of(&ops.get("/metrics").await.body);
        assert_eq!(server.call("GET", target, "not known", "").await.status, 401);
        let name = r#"x0_msg_credentials_rejected_total{reason="unknown"}"#;
        let after = Scrape::of(&ops.get("/metrics").await.body);
        assert_eq!(after.value(name) - before.value(name), 1.0, "{target}");
    }
}

#[tokio::test]
async fn the_port_of_operators_needs_no_key_and_serves_nothing_else() {
    let server = Guarded::with(&["--ops-listen", "127.0.0.1:0"]).await;
    let address = ops_address(&server);
    let mut ops = Http::connect(address).await;
    assert_eq!(ops.get("/metrics").await.status, 200);
    for (path, status) in [("/healthz", "ok"), ("/readyz", "ok")] {
        assert_eq!(ops.get(path).await.json()["status"], status);
    }
    for path in ["/v1/messages?session=A&wait=0", "/", "/ws", "/openapi.json", &x0_target()] {
        assert_eq!(ops.get(path).await.status, 404, "{path}");
    }
    // By its own name a site reaches a loopback address too.
    let stream = soon(tokio::net::TcpStream::connect(address)).await.unwrap();
    let mut rebound = Http::on(stream, "rebind.example").await;
    assert_eq!(rebound.get("/metrics").await.status, 421);
    assert_eq!(rebound.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn the_port_of_operators_is_open_before_the_store_and_until_the_end() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    faults.set("sync-hangs", "");
    let server = faults.starting(dir.path(), &["--ops-listen", "127.0.0.1:0", "--poll-timeout", "1h"]).await;
    let mut ops = Http::connect(ops_address(&server)).await;
    let (health, ready) = (ops.get("/healthz").await, ops.get("/readyz").await);
    assert_eq!((health.status, ready.status), (200, 503));
    assert_eq!(health.json()["status"], "starting");
    assert_eq!(ops.get("/metrics").await.status, 503);
    let log = server.log_from_here();
    faults.clear("sync-hangs");
    log.contains("\"ready\"").await;
    assert_eq!(
        (ops.get("/healthz").await.json()["status"].clone(), ops.get("/readyz").await.status),
        (json!("ok"), 200)
    );
    // A page that does not close its socket holds the stop up.
    let mut page = server.session("A").await;
    server.signal(15);
    soon(async { while ops.get("/readyz").await.status == 200 {} }).await;
    let health = ops.get("/healthz").await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("draining")));
    let scrape = Scrape::of(&ops.get("/metrics").await.body);
    assert_eq!(scrape.value("x0_msg_ready"), 0.0);
    assert_eq!(page.closed().await.0, 1001);
    server.stopped().await;
}

#[tokio::test]
async fn the_documentation_lists_each_metric_with_its_type() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, ops) = with_everything(dir.path(), &[]).await;
    let reply = Http::connect(ops).await.get("/metrics").await;
    let (_, section) = PAGE.split_once("## Metrics").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut documented = BTreeMap::new();
    for line in section.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, rest) = line.split_once('`').unwrap();
        let name = name.split('{').next().unwrap();
        documented.insert(name, rest.split('|').nth(1).unwrap().trim());
    }
    let mut found = families(&reply.body);
    // An info is a gauge in the older format.
    assert_eq!(found.insert("x0_msg_build_info", "info"), Some("gauge"));
    documented.retain(|name, _| !name.starts_with("x0_msg_nats_"));
    assert_eq!(documented, found);
}

#[tokio::test]
async fn the_alerts_and_the_dashboard_name_metrics_that_there_are() {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/docker/alerts.yaml");
    let (fine, said) = promtool(&["check", "rules", "--lint-fatal", rules], "").await;
    assert!(fine, "{said}");
    let dir = tempfile::tempdir().unwrap();
    let (_server, ops) = with_everything(dir.path(), &[]).await;
    let scrape = Scrape::of(&Http::connect(ops).await.get("/metrics").await.body);
    let (names, nats) = (scrape.names(), |name: &&str| !name.starts_with("x0_msg_nats_"));
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
    let queries: Vec<&str> = targets.flatten().map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(queries.len() > 20, "{queries:?}");
    for text in queries.into_iter().chain([ALERTS]) {
        let missing: Vec<_> =
            metrics_of(text).into_iter().filter(nats).filter(|name| !names.contains(name)).collect();
        assert!(missing.is_empty(), "{missing:?} in {text}");
    }
}

#[tokio::test]
async fn the_process_is_told() {
    let server = TestServer::start().await;
    let scrape = Scrape::new(&server).await;
    let now = now() as f64;
    let start = scrape.value("process_start_time_seconds");
    assert!((now - start).abs() < 600.0, "{start}");
    assert!(scrape.value("process_resident_memory_bytes") > 1e6);
    let (open, most) = (scrape.value("process_open_fds"), scrape.value("process_max_fds"));
    assert!(open > 5.0 && open < most, "{open} of {most}");
    let grown = growth(&server, &["process_cpu_seconds_total"], async {}).await;
    assert!(grown[0] >= 0.0);
}
