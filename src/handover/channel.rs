//! The channel between the two processes: each note is one packet, and may carry a socket.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Most bytes of a note. A connection carries what was read of a request: its head has at most 64 KiB.
const MOST: usize = 64 * 1024 + 1;

/// What one process tells the other.
#[derive(Debug)]
pub(super) enum Note {
    /// To the new process: it listens here for clients.
    Clients(OwnedFd),
    /// To the new process: it listens here for operators.
    Operators(OwnedFd),
    /// To the new process: these were all listening sockets.
    Listeners,
    /// From the new process: its settings are valid.
    Ready,
    /// To the new process: a connection, and what was read of its next request.
    Connection(OwnedFd, Vec<u8>),
    /// To the new process: the store is closed.
    Released,
    /// From the new process: it serves.
    Serving,
}

impl Note {
    /// The first byte of its packet, the other ones, and its socket.
    fn parts(&self) -> (u8, &[u8], Option<BorrowedFd<'_>>) {
        match self {
            Self::Clients(socket) => (b'c', &[], Some(socket.as_fd())),
            Self::Operators(socket) => (b'o', &[], Some(socket.as_fd())),
            Self::Listeners => (b'l', &[], None),
            Self::Ready => (b'r', &[], None),
            Self::Connection(socket, input) => (b'i', input, Some(socket.as_fd())),
            Self::Released => (b'f', &[], None),
            Self::Serving => (b's', &[], None),
        }
    }

    fn of(packet: &[u8], socket: Option<OwnedFd>) -> Option<Self> {
        let (kind, rest) = packet.split_first()?;
        Some(match (kind, socket) {
            (b'c', Some(socket)) => Self::Clients(socket),
            (b'o', Some(socket)) => Self::Operators(socket),
            (b'l', None) => Self::Listeners,
            (b'r', None) => Self::Ready,
            (b'i', Some(socket)) => Self::Connection(socket, rest.to_vec()),
            (b'f', None) => Self::Released,
            (b's', None) => Self::Serving,
            _ => return None,
        })
    }
}

/// One end of the channel. Packets come in order, and none is lost.
#[derive(Debug)]
pub(super) struct Channel(UnixDatagram);

impl Channel {
    /// A channel: this end, and the socket that another process makes its end of. Call it within a tokio runtime.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::new(ours)?, theirs))
    }

    /// An end of a channel. Call it within a tokio runtime.
    ///
    /// # Errors
    /// It is no socket.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self(UnixDatagram::from_std(socket)?))
    }

    /// Sends a note. It waits until the other process takes it.
    ///
    /// # Errors
    /// The other process has ended.
    pub(super) async fn send(&self, note: &Note) -> io::Result<()> {
        let (kind, rest, socket) = note.parts();
        let kind = [kind];
        let sockets = socket.map(|socket| [socket]);
        let sending = self.0.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if let Some(sockets) = &sockets {
                control.push(SendAncillaryMessage::ScmRights(sockets));
            }
            let packet = [IoSlice::new(&kind), IoSlice::new(rest)];
            Ok(sendmsg(&self.0, &packet, &mut control, SendFlags::NOSIGNAL).map(drop)?)
        });
        sending.await
    }

    /// The next note of the other process.
    ///
    /// # Errors
    /// The other process has ended (`UnexpectedEof`), or it is of a version that says something else.
    pub(super) async fn receive(&self) -> io::Result<Note> {
        let mut packet = vec![0; MOST];
        let receiving = self.0.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut room = [IoSliceMut::new(&mut packet)];
            let received = recvmsg(&self.0, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let socket = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
                _ => None,
            });
            Ok((received.bytes, socket))
        });
        let (len, socket) = receiving.await?;
        if len == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the other process has ended"));
        }
        Note::of(&packet[..len], socket)
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "an unknown note"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_connection_goes_through_with_what_was_read_of_it() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::new(theirs).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        ours.send(&Note::Connection(accepted.into(), b"GET /".to_vec())).await.unwrap();
        ours.send(&Note::Released).await.unwrap();
        let Note::Connection(socket, input) = theirs.receive().await.unwrap() else {
            panic!("no connection")
        };
        assert_eq!(input, b"GET /");
        assert!(matches!(theirs.receive().await.unwrap(), Note::Released));
        TcpStream::from(socket).write_all(b"hello").unwrap();
        let mut read = [0; 5];
        client.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
    }

    #[tokio::test]
    async fn the_end_of_the_other_process_is_an_error() {
        let (ours, theirs) = Channel::pair().unwrap();
        drop(theirs);
        assert_eq!(ours.receive().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        ours.send(&Note::Ready).await.unwrap_err();
    }

    #[test]
    fn a_packet_of_another_version_is_no_note() {
        assert!(
            Note::of(b"?", None).is_none() && Note::of(b"c", None).is_none() && Note::of(b"", None).is_none()
        );
    }
}
