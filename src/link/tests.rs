use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::yield_now;

use super::testing::tcp_pair;
use super::*;

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        yield_now().await;
    }
}

/// Makes the close of a client a reset.
fn reset(client: TcpStream) {
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
}

#[test]
fn each_link_has_its_id() {
    assert_ne!(Link::new().id(), Link::new().id());
    assert_eq!(Link::new().peer(), None);
}

#[tokio::test]
async fn written_bytes_are_acknowledged_by_the_peers_tcp() {
    let (mut server, link, _client) = tcp_pair().await;
    assert_eq!(link.peer(), Some("127.0.0.1".parse().unwrap()));
    server.write_all(b"before").await.unwrap();
    assert!(!link.all_bytes_acked(), "without a watch it is not known");
    link.watch();
    server.write_all(b"after").await.unwrap();
    until(|| link.all_bytes_acked()).await;
    assert!(!link.is_broken() && !link.peer_closed());
}

#[tokio::test]
async fn it_is_known_after_the_connection_was_dropped() {
    let (mut server, link, mut client) = tcp_pair().await;
    link.watch();
    server.write_all(b"last").await.unwrap();
    server.shutdown().await.unwrap();
    drop(server);
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"last");
    until(|| link.all_bytes_acked()).await;
}

#[tokio::test]
async fn a_dropped_connection_is_closed_although_its_link_is_kept() {
    let (mut server, link, mut client) = tcp_pair().await;
    link.watch();
    server.write_all(b"x").await.unwrap();
    drop(server);
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"x");
}

#[tokio::test]
async fn a_reset_breaks_the_link_also_after_the_drop() {
    let (mut server, link, client) = tcp_pair().await;
    link.watch();
    server.write_all(b"x").await.unwrap();
    drop(server);
    reset(client);
    until(|| link.is_broken()).await;
    assert!(!link.all_bytes_acked());
}

#[tokio::test]
async fn a_read_error_breaks_the_link() {
    let (mut server, link, client) = tcp_pair().await;
    reset(client);
    server.read_u8().await.unwrap_err();
    assert!(link.is_broken() && !link.peer_closed());
}

#[tokio::test]
async fn an_orderly_close_is_told_from_our_own() {
    let (mut server, link, client) = tcp_pair().await;
    drop(client);
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(link.peer_closed() && !link.is_broken());
    let (mut server, link, client) = tcp_pair().await;
    server.shutdown().await.unwrap();
    drop(client);
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(!link.peer_closed());
}

/// A watched connection on which an answer was written.
async fn answered() -> (MonitoredStream<SharedSocket>, Arc<Link>, TcpStream) {
    let (mut server, link, client) = tcp_pair().await;
    link.watch();
    server.write_all(b"an answer").await.unwrap();
    (server, link, client)
}

#[tokio::test]
async fn a_close_of_the_peer_is_seen_before_the_connection_is_read() {
    let (_server, link, mut client) = answered().await;
    client.read_exact(&mut [0; 9]).await.unwrap();
    assert!(!link.peer_closed());
    drop(client);
    assert!(link.peer_closed() && !link.is_broken());
}

#[tokio::test]
async fn our_own_close_is_not_one_of_the_peer() {
    let (server, link, client) = answered().await;
    drop(server);
    assert!(!link.peer_closed());
    drop(client);
    assert!(!link.peer_closed());
}

#[tokio::test]
async fn a_reset_is_not_lost_by_looking_for_a_close() {
    let (_server, link, client) = answered().await;
    // The answer was not read, so this close is a reset.
    drop(client);
    assert!(!link.peer_closed() && link.is_broken());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_breaks_the_link() {
    let (ours, theirs) = tokio::io::duplex(4);
    let link = Link::new();
    let mut stream = MonitoredStream::opaque(ours, Arc::clone(&link));
    let begun = tokio::time::Instant::now();
    let error = stream.write_all(b"more than fits").await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::TimedOut, WRITE_TIMEOUT));
    assert!(link.is_broken());
    drop(theirs);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_something_now_and_then_is_waited_for() {
    let (ours, mut theirs) = tokio::io::duplex(4);
    let link = Link::new();
    let mut stream = MonitoredStream::opaque(ours, Arc::clone(&link));
    let reading = async {
        let mut read = Vec::new();
        while read.len() < 16 {
            tokio::time::sleep(WRITE_TIMEOUT - Duration::from_secs(1)).await;
            let mut bytes = [0; 4];
            let count = theirs.read(&mut bytes).await.unwrap();
            read.extend_from_slice(&bytes[..count]);
        }
        read
    };
    let (written, read) = tokio::join!(stream.write_all(b"four by four !!!"), reading);
    written.unwrap();
    assert_eq!(read, b"four by four !!!");
    assert!(!link.is_broken() && !link.all_bytes_acked());
}

#[tokio::test(start_paused = true)]
async fn a_stall_ends_30_s_after_the_peers_tcp_took_something() {
    let begun = Instant::now();
    let mut stall = Stall::new(Some(100));
    // A byte at each look for 50 s, and then none.
    let left = || {
        let looks = begun.elapsed().as_secs() / STALL_CHECK.as_secs();
        Some(100 - looks.min(10) as usize)
    };
    std::future::poll_fn(|cx| stall.poll_end(cx, left)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(50) + WRITE_TIMEOUT);
}

#[tokio::test]
async fn a_link_counts_what_the_peer_takes() {
    let (mut server, link, mut client) = tcp_pair().await;
    server.write_all(b"12345").await.unwrap();
    client.read_exact(&mut [0; 5]).await.unwrap();
    until(|| link.unacknowledged() == Some(Unacknowledged { bytes: 0, acked: 5 })).await;
    drop(server);
    assert_eq!(link.unacknowledged(), None, "the connection has ended");
}

/// A read that finds less than it asks for, and a write that the peer does not take whole, wait for the system without a further
/// attempt. Nothing is waited for that is there.
#[tokio::test]
async fn everything_gets_through_in_parts_of_all_sizes() {
    let (mut server, _link, client) = tcp_pair().await;
    let sent: Vec<u8> = (0..8_u32 << 20).map(|n| (n % 251) as u8).collect();
    let (mut reading, mut writing) = client.into_split();
    let echo = async {
        let (mut buffer, mut all) = (vec![0; 1 << 20], 0);
        for size in (0..).map(|n| 1 + (n * n * 7919) % (1 << 20)) {
            match server.read(&mut buffer[..size]).await.unwrap() {
                0 => break,
                count => server.write_all(&buffer[..count]).await.unwrap(),
            }
            all += 1;
        }
        server.shutdown().await.unwrap();
        assert!(all > 8, "it came in parts");
    };
    let write = async {
        writing.write_all(&sent).await.unwrap();
        writing.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let read = async { reading.read_to_end(&mut heard).await.unwrap() };
    tokio::join!(echo, write, read);
    assert!(heard == sent);
}
