use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;

const LIMIT: usize = 100_000;

/// A text frame with a mask of zeros.
fn frame(text: &str) -> Vec<u8> {
    let mut bytes = vec![0x81, 0x80 | 126];
    bytes.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// Words of more than 125 bytes.
fn words(n: usize) -> String {
    format!("{n}{}", "x".repeat(200))
}

fn pair() -> (Socket<DuplexStream>, DuplexStream) {
    let (ours, theirs) = duplex(1 << 20);
    (Socket::new(ours, &Budget::new(Budget::MOST)), theirs)
}

async fn read(socket: &mut Socket<DuplexStream>) -> Received {
    poll_fn(|cx| socket.poll_read(cx, LIMIT)).await.unwrap().unwrap()
}

#[tokio::test]
async fn what_comes_together_is_heard_without_another_read() {
    let (mut socket, mut peer) = pair();
    let bytes: Vec<u8> = (0..10).flat_map(|n| frame(&words(n))).collect();
    // The last one is not complete.
    peer.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    assert_eq!(read(&mut socket).await, Received::Text(words(0)));
    for n in 1..9 {
        assert_eq!(socket.buffered(100_000), Some(Ok(Received::Text(words(n)))));
    }
    assert_eq!(socket.buffered(100_000), None);
    assert_eq!(socket.unread.capacity(), 0, "a socket at rest holds no buffer");
    assert_eq!(socket.received(), bytes.len() as u64 - 1);
    peer.write_all(&bytes[bytes.len() - 1..]).await.unwrap();
    assert_eq!(read(&mut socket).await, Received::Text(words(9)));
}

#[tokio::test]
async fn the_end_of_the_stream_is_told() {
    let (mut socket, peer) = pair();
    drop(peer);
    assert_eq!(poll_fn(|cx| socket.poll_read(cx, LIMIT)).await, None);
}

#[tokio::test]
async fn what_comes_before_the_close_frame_is_skipped() {
    let (mut socket, mut peer) = pair();
    peer.write_all(&frame(&words(1))).await.unwrap();
    let mut waiting = std::pin::pin!(socket.wait_for_close(100_000));
    assert!(futures::poll!(&mut waiting).is_pending());
    peer.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
    waiting.await;
}

#[tokio::test]
async fn a_client_that_cannot_be_decoded_is_read_to_its_end() {
    let (mut socket, mut peer) = pair();
    peer.write_all(&[0x83, 0x80, 0, 0, 0, 0]).await.unwrap();
    let read = poll_fn(|cx| socket.poll_read(cx, LIMIT)).await;
    assert!(matches!(read, Some(Err(ReadError::Protocol(_)))));
    peer.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
    let mut waiting = std::pin::pin!(socket.wait_for_close(100_000));
    assert!(futures::poll!(&mut waiting).is_pending());
    assert_eq!(peer.read(&mut [0]).await.unwrap(), 0, "our side is closed");
    drop(peer);
    waiting.await;
}
