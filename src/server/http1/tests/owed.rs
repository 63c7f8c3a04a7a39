//! Requests that are sent before the ones in front of them are answered, on a store whose commits the test decides about.

use std::net::Ipv4Addr;

use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::{Config, Level};
use crate::engine::Engine;
use crate::engine::embedded::{Durability, Embedded, Writer};
use crate::hub::Hubs;
use crate::server::http1::owed::MOST_OWED;
use crate::server::router::HostCheck;
use crate::server::{Server, broker_limits, engine_settings};

fn config() -> Config {
    let mut config = Config { poll_timeout: Duration::from_secs(10), ..Config::default() };
    (config.access.send_rate, config.access.send_bytes_rate) = (Some(0), Some(0));
    config
}

/// A broker whose writer works only when the test lets it, and one connection to it.
struct Stepped {
    server: Server,
    writer: Writer,
    peer: DuplexStream,
    serving: JoinHandle<()>,
    _dir: TempDir,
}

impl Stepped {
    fn new() -> Self {
        let (config, clock, hubs, dir) = (config(), Clock::Wall, Hubs::new(16), tempfile::tempdir().unwrap());
        let settings = engine_settings(&config, clock);
        let (engine, writer) =
            Embedded::open_stepped(settings, hubs.clone(), dir.path(), Durability::Os).unwrap();
        let broker = Broker::new(Engine::Embedded(engine), hubs, broker_limits(&config), clock);
        let server = Server::with(broker, config).unwrap();
        let (peer, stream) = duplex(1 << 20);
        let serving = tokio::spawn(server.connection(stream, Link::new()));
        Self { server, writer, peer, serving, _dir: dir }
    }

    async fn write(&mut self, bytes: &str) {
        self.peer.write_all(bytes.as_bytes()).await.unwrap();
        settled().await;
    }

    /// Commits what is queued, as one transaction. Returns what is answered then.
    async fn commit(&mut self) -> String {
        assert!(self.writer.turn(), "nothing is queued");
        self.answers().await
    }

    /// What is answered so far.
    async fn answers(&mut self) -> String {
        settled().await;
        let mut read = Vec::new();
        while let Some(length) = self.peer.read_buf(&mut read).now_or_never()
            && length.unwrap() > 0
        {}
        String::from_utf8(read).unwrap()
    }

    /// What is answered until the connection ends.
    async fn rest(mut self) -> String {
        let mut rest = String::new();
        self.peer.read_to_string(&mut rest).await.unwrap();
        self.serving.await.unwrap();
        rest
    }
}

/// Lets the connection go on until it waits.
async fn settled() {
    for _ in 0..24 {
        yield_now().await;
    }
}

fn send(n: usize) -> String {
    send_to(r#"{"session":"B"}"#, n)
}

fn send_to(to: &str, n: usize) -> String {
    let body = format!(r#"{{"id":"{n}","to":{to},"payload":{n}}}"#);
    format!("POST /v1/messages?session=A HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn x0_send(n: usize) -> String {
    let body = format!(r#"{{"type":"SET","session_src":"A","session_dst":"B","payload":{{"n":{n}}}}}"#);
    format!("POST /set?a__={n} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn ack(seq: usize) -> String {
    let body = format!(r#"{{"session":"B","seq":{seq}}}"#);
    format!("POST /v1/ack HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn poll(wait: usize) -> String {
    format!("GET /v1/messages?session=B&wait={wait} HTTP/1.1\r\nhost: x\r\n\r\n")
}

/// The ids that a text of answers names, in order.
fn ids(answers: &str) -> Vec<usize> {
    numbers(answers, r#"{"id":""#)
}

/// The numbers behind a mark.
fn numbers(text: &str, mark: &str) -> Vec<usize> {
    let parts = text.split(mark).skip(1);
    parts.map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn sends_of_one_connection_are_committed_together_and_answered_in_order() {
    let mut stepped = Stepped::new();
    stepped.write(&(0..5).map(send).collect::<String>()).await;
    // What comes meanwhile joins them, in parts too.
    let (sixth, seventh) = (send(5), send(6));
    let (head, body) = seventh.split_at(seventh.len() - 3);
    let (first, second) = head.split_at(20);
    for part in [&sixth, first, second, body] {
        stepped.write(part).await;
        assert_eq!(stepped.answers().await, "");
    }
    let answers = stepped.commit().await;
    assert_eq!(ids(&answers), [0, 1, 2, 3, 4, 5, 6]);
    assert!(numbers(&answers, r#""seq":"#).is_sorted(), "{answers}");
    assert!(!stepped.writer.turn(), "it was one commit");
    stepped.write(&poll(0)).await;
    assert_eq!(numbers(&stepped.answers().await, r#""payload":"#), [0, 1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn the_sends_of_an_x0_page_acknowledgements_and_refusals_keep_their_places() {
    let mut stepped = Stepped::new();
    let refused = send_to(r#"{"user":"nobody"}"#, 2);
    stepped.write(&[send(0), refused, x0_send(1), ack(0), send(3)].concat()).await;
    assert_eq!(stepped.answers().await, "");
    let answers = stepped.commit().await;
    let answers: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).collect();
    assert_eq!(answers.len(), 5, "{answers:?}");
    for (answer, (status, body)) in answers.iter().zip([
        ("200", r#"{"id":"0","seq":"#),
        ("404", r#"{"error":{"code":"not_found""#),
        ("200", r#"{"messages":null,"status":"ok"}"#),
        ("200", r#"{"session":"B","seq":"#),
        ("200", r#"{"id":"3","seq":"#),
    ]) {
        assert!(answer.starts_with(status) && answer.contains(body), "{answer}");
    }
}

#[tokio::test]
async fn a_poll_sees_what_the_sends_in_front_of_it_did() {
    let mut stepped = Stepped::new();
    stepped.write(&[send(0), poll(10), send(1)].concat()).await;
    let answers = stepped.commit().await;
    assert_eq!((ids(&answers), numbers(&answers, r#""payload":"#)), (vec![0], vec![0]));
    assert_eq!(ids(&stepped.commit().await), [1], "what is behind a poll waits for it");
}

#[tokio::test]
async fn what_has_to_be_parsed_waits_for_the_sends_in_front_of_it() {
    let mut stepped = Stepped::new();
    let invalid = send_to(r#"{"session":""}"#, 1);
    stepped.write(&[send(0), invalid, send(2)].concat()).await;
    let answers = stepped.commit().await;
    assert_eq!((ids(&answers), answers.matches("HTTP/1.1 400").count()), (vec![0], 1), "{answers}");
    assert_eq!(ids(&stepped.commit().await), [2]);
}

#[tokio::test]
async fn what_a_connection_owes_is_bounded() {
    let mut stepped = Stepped::new();
    let count = MOST_OWED + 8;
    stepped.write(&(0..count).map(send).collect::<String>()).await;
    assert_eq!(ids(&stepped.commit().await), (0..MOST_OWED).collect::<Vec<_>>());
    assert_eq!(ids(&stepped.commit().await), (MOST_OWED..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn nothing_is_read_behind_a_request_that_closes() {
    let mut stepped = Stepped::new();
    let closing = send(1).replace("host: x", "host: x\r\nconnection: close");
    stepped.write(&[send(0), closing, send(2)].concat()).await;
    assert!(stepped.writer.turn());
    assert!(!stepped.writer.turn());
    let rest = stepped.rest().await;
    assert_eq!((ids(&rest), rest.matches("connection: close\r\n").count()), (vec![0, 1], 1));
}

#[tokio::test]
async fn a_stop_answers_what_has_begun_and_closes_after_the_last_one() {
    let mut stepped = Stepped::new();
    stepped.write(&[send(0), send(1)].concat()).await;
    stepped.server.shutdown().cancel();
    stepped.write(&send(2)).await;
    assert!(stepped.writer.turn());
    let rest = stepped.rest().await;
    assert_eq!(ids(&rest), [0, 1]);
    let (first, last) = rest.split_at(rest.rfind("HTTP/1.1").unwrap());
    assert!(!first.contains("connection: close") && last.contains("connection: close"), "{rest}");
}

#[tokio::test]
async fn a_peer_that_closes_its_side_is_told_of_the_requests_before_the_last_one() {
    let mut stepped = Stepped::new();
    stepped.write(&send(0)).await;
    stepped.peer.shutdown().await.unwrap();
    assert_eq!(ids(&stepped.rest().await), Vec::<usize>::new(), "as with hyper");
    let mut stepped = Stepped::new();
    stepped.write(&[send(0), send(1)].concat()).await;
    stepped.peer.shutdown().await.unwrap();
    settled().await;
    assert!(stepped.writer.turn());
    assert!(ids(&stepped.rest().await).starts_with(&[0]));
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_head_begins_when_nothing_is_owed() {
    let mut stepped = Stepped::new();
    let timeout = Config::default().header_timeout;
    stepped.write(&(send(0) + "POST /v1/mess")).await;
    tokio::time::sleep(3 * timeout).await;
    assert_eq!(ids(&stepped.commit().await), [0]);
    let begun = Instant::now();
    assert_eq!(stepped.rest().await, "");
    assert_eq!(begun.elapsed(), timeout);
}

/// Answers without their dates, each with its headers in the order of their names: routes set the length earlier.
fn in_order(answers: &str) -> Vec<(Vec<&str>, &str)> {
    let one = |answer| {
        let (head, body) = str::split_once(answer, "\r\n\r\n").unwrap();
        let mut lines: Vec<_> = head.split("\r\n").filter(|line| !line.starts_with("date: ")).collect();
        lines[1..].sort_unstable();
        (lines, body)
    };
    // HTTP/1.0 too.
    answers.split("HTTP/1.").skip(1).map(one).collect()
}

#[tokio::test]
async fn what_is_behind_sends_that_wait_for_the_disk_is_answered_as_by_hyper() {
    let dir = tempfile::tempdir().unwrap();
    let (durability, data_dir, poll_timeout) = (Level::Os, dir.path().to_owned(), Duration::from_millis(1));
    let server = Server::new(Config { durability, data_dir, poll_timeout, ..config() }, Clock::Wall).unwrap();
    server.open_routes(HostCheck::new(&server.gateway, Ipv4Addr::LOCALHOST.into()));
    let connections = &server.entrance.acceptor.connection_server;
    let end = poll(0).replace("host: x", "host: x\r\nconnection: close");
    // Without an answer they are not whole.
    for (behind, ..) in requests().into_iter().filter(|(_, status, _)| *status > 0) {
        let all = [&*(0..3).map(send).collect::<String>(), &behind, &end].concat();
        let all = all.replace("host: x\r\n", "host: localhost\r\n");
        let mut answers = [const { String::new() }; 2];
        for (by_hyper, answers) in [true, false].into_iter().zip(&mut answers) {
            let ((mut peer, stream), link) = (duplex(1 << 20), Link::new());
            let serving = match by_hyper {
                true => tokio::spawn(connections.http1(stream, link, HeadTimer::default())),
                false => tokio::spawn(connections.http1_cleartext(stream, link)),
            };
            peer.write_all(all.as_bytes()).await.unwrap();
            peer.read_to_string(answers).await.unwrap();
            serving.await.unwrap();
        }
        let [theirs, ours] = &answers;
        assert_eq!(in_order(ours), in_order(theirs), "{}", &behind[..behind.len().min(200)]);
        assert_eq!(ids(ours), [0, 1, 2], "{ours}");
    }
}
