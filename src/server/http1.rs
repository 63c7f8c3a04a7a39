//! HTTP/1.1 without TLS: a loop that answers polls and sends itself, opens WebSockets, and hands everything else to hyper.
//!
//! hyper holds some buffers of 8 KiB for each connection, also while a poll waits. This loop holds the connection and the
//! poll. A WebSocket reads and writes the connection itself, and not through hyper. The loop takes only requests whose head
//! is plain and whose body is short (see [`head`]). With anything else, the rest of the connection is hyper's, together with
//! what was read. So what is refused is refused by hyper.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::link::{Lendable, Link};
use crate::server::answer::{Answer, Progress};
use crate::server::connection::ConnectionServer;
use crate::server::direct::Door;
use crate::server::requests::{self, Logged};
use crate::timer::LazyTimer;
use crate::transport::websocket::Opening;

mod body;
mod head;
mod live;
mod next;
mod output;
mod owed;
mod replay;
#[cfg(test)]
mod tests;
mod timer;
mod twin;
mod upgrade;

pub(super) use replay::Replay;
pub(super) use timer::HeadTimer;
pub(crate) use twin::compare;
pub(super) use upgrade::Sockets;

use head::{Head, MOST, Plain};
use live::Live;
use output::Output;
use owed::Owed;

/// A connection that is read by the loop.
struct Connection<S> {
    server: Arc<ConnectionServer>,
    link: Arc<Link>,
    io: Io<S>,
    /// The time of the next head.
    timer: LazyTimer,
    /// Tells when the server stops.
    stopped: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Whether the peer sends no more.
    ended: bool,
    /// Whether the connection ends once no answer is owed.
    closes: bool,
}

/// The stream of a connection, with what was read of it and what is to be written.
struct Io<S> {
    stream: S,
    /// What was read and is not used yet. It holds no memory while it is empty.
    input: Vec<u8>,
    /// Answers that are not written yet.
    output: Output,
    /// Answers that come behind them.
    owed: Owed,
}

/// What comes next on a connection.
enum Next {
    /// A request that is being answered.
    Answering(Answering),
    Request(Box<Head>),
    /// A handshake of a WebSocket, in so many bytes.
    Opening(Box<Opening>, usize),
    /// Something for hyper.
    Other,
    /// Nothing as far as this process goes on with the connection.
    Passed,
    /// Its end.
    End,
}

/// What serves the rest of a connection.
type Rest = BoxFuture<'static, ()>;

/// A request that is being answered.
struct Answering {
    progress: BoxFuture<'static, Progress>,
    /// Whether it may begin before the requests in front of it have their answers.
    joins: bool,
    logged: Logged,
    /// The body, if not all of it has come.
    late: Option<LateBody>,
    /// Whether the connection ends after the answer.
    closes: bool,
}

/// A body that is waited for.
struct LateBody {
    len: usize,
    sender: oneshot::Sender<Bytes>,
}

impl ConnectionServer {
    /// Serves a connection that speaks HTTP/1.1 without TLS.
    pub(super) fn http1_cleartext<S>(
        self: &Arc<Self>,
        stream: S,
        link: Arc<Link>,
    ) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.http1_cleartext_from(stream, link, Vec::new())
    }

    /// The same of a connection that another process has begun to serve. It has read this of the next request.
    pub(super) fn http1_cleartext_from<S>(
        self: &Arc<Self>,
        stream: S,
        link: Arc<Link>,
        input: Vec<u8>,
    ) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        link.note_cleartext();
        let io = Io { stream, input, output: Output::default(), owed: Owed::default() };
        let (server, timer) = (Arc::clone(self), LazyTimer::default());
        let connection = Connection { server, link, io, timer, stopped: None, ended: false, closes: false };
        // Boxed, so that its memory is free once the loop is done: a WebSocket lasts long.
        let serving = Box::pin(connection.serve());
        async move {
            let rest = serving.await;
            if let Some(rest) = rest {
                rest.await;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection<S> {
    /// Serves the connection. Returns what serves the rest of it, if something else than the loop does.
    ///
    /// Not an async function: its future would hold the connection more than once.
    fn serve(self) -> impl Future<Output = Option<Rest>> + Send {
        let mut connection = self;
        async move {
            loop {
                let begun = Instant::now();
                let next = connection.next(begun).await;
                let goes_on = match next {
                    Ok(Next::Answering(answering)) => connection.answer(answering).await,
                    Ok(Next::Request(head)) => {
                        let answering = connection.begin(head);
                        connection.answer(answering).await
                    }
                    Ok(Next::Opening(opening, len)) => match connection.sockets(&opening) {
                        Some(sockets) => {
                            let Io { stream, mut input, .. } = connection.io;
                            return Some(sockets.accept(*opening, stream, input.split_off(len)).await);
                        }
                        None => return Some(connection.hand_over(begun)),
                    },
                    Ok(Next::Other) => return Some(connection.hand_over(begun)),
                    Ok(Next::Passed) => {
                        connection.pass();
                        return None;
                    }
                    Ok(Next::End) => Ok(false),
                    Err(error) => Err(error),
                };
                match goes_on {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::debug!(%error, "connection ended");
                        // Of several requests, the first ones may have their answers.
                        _ = connection.io.flush().await;
                        return None;
                    }
                }
            }
            // Whether the peer is still there does not matter.
            _ = connection.io.stream.shutdown().await;
            None
        }
    }

    /// What serves a WebSocket with this handshake, if the routes do not refuse it.
    fn sockets(&self, opening: &Opening) -> Option<Sockets> {
        self.server.routes.sockets().filter(|sockets| sockets.admits(opening)).cloned()
    }

    /// Gives the connection to the process that takes over. If that has ended, the connection is closed.
    fn pass(self) {
        let Self { server, link, io: Io { stream, input, .. }, .. } = self;
        server.passing.pass(&link, input);
        drop(stream);
    }

    /// Hands the rest of the connection to hyper, which has begun to wait for a head at this time.
    ///
    /// Boxed: it takes more than what the loop needs.
    fn hand_over(self, begun: Instant) -> Rest {
        let Self { server, link, io: Io { stream, input, .. }, .. } = self;
        Box::pin(server.http1(Replay::new(stream, input), link, HeadTimer::begun(begun)))
    }

    /// Begins to answer a request. Its head goes to the one who answers, and is not held here.
    fn begin(&mut self, head: Box<Head>) -> Answering {
        let Head { mut parts, door, plain: Plain { len, body, closes } } = *head;
        parts.extensions.insert(Arc::clone(&self.link));
        if door == Door::Events {
            parts.extensions.insert(Lendable);
        }
        self.io.input.drain(..len);
        let (body, late) = match self.io.input.len() < body {
            true => {
                let (late, sender) = body::late(body);
                (late, Some(LateBody { len: body, sender }))
            }
            false => (Body::from(self.io.take(body)), None),
        };
        let headers = (&parts.headers).into();
        let logged = Logged::new(door.name(), &self.server.access.get(), &self.link, headers);
        let span = logged.span(headers);
        let response = self.server.routes.answer(door, Request::from_parts(parts, body));
        let progress = requests::traced(span, Box::pin(response.map(Progress::from)));
        Answering { progress, joins: false, logged, late, closes }
    }

    /// Answers a request, or has its answer owed. Returns whether the connection goes on. If the next request has come, the answer is
    /// written together with the next one.
    async fn answer(&mut self, mut answering: Answering) -> io::Result<bool> {
        let progress = poll_fn(|cx| self.poll_answer(&mut answering, cx)).await?;
        let Answering { progress: done, logged, late, mut closes, .. } = answering;
        drop(done);
        if let Progress::Answered(Answer::Response(response)) = &progress {
            logged.answered(response);
        }
        let answer = match progress {
            Progress::Answered(answer) if self.io.owed.is_empty() => answer,
            progress => {
                self.io.owed.push(progress, closes, logged);
                self.closes |= closes;
                return Ok(true);
            }
        };
        closes |= self.server.shutdown.is_cancelled();
        let goes_on = !closes && !self.ended && late.is_none();
        drop(late);
        match answer {
            Answer::Response(response) if live::is_live(&response) => {
                let mut live = Box::new(Live::new(response, closes, &mut self.io.output));
                poll_fn(|cx| self.poll_live(&mut live, cx)).await?;
            }
            answer => self.io.output.push(answer, closes)?,
        }
        if !goes_on || self.io.input.is_empty() || self.io.output.is_large() {
            self.io.flush().await?;
        }
        Ok(goes_on)
    }

    /// Writes an answer that comes over time, and watches whether the peer goes.
    fn poll_live(&mut self, live: &mut Live, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(&mut None, cx)?;
        live.poll_write((&mut self.io.output, &mut self.io.stream), cx)
    }

    /// Waits for an answer, or until the next request may begin. Meanwhile those before are written.
    fn poll_answer(&mut self, answering: &mut Answering, cx: &mut Context<'_>) -> Poll<io::Result<Progress>> {
        if !self.io.owed.is_empty() {
            if answering.joins
                && let Poll::Ready(progress) = answering.progress.as_mut().poll(cx)
            {
                return Poll::Ready(Ok(progress));
            }
            ready!(self.poll_owed((0, false), cx))?;
        }
        self.watch(&mut answering.late, cx)?;
        let progress = answering.progress.as_mut().poll(cx);
        if progress.is_pending() {
            _ = self.io.poll_flush(cx)?;
        }
        progress.map(Ok)
    }

    /// Reads the rest of a body, and then watches whether the peer goes. What comes of the next request stays for later.
    ///
    /// # Errors
    /// The peer has gone. As with hyper, that includes one that closes its side only.
    fn watch(&mut self, late: &mut Option<LateBody>, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.ended {
            match late.take() {
                Some(LateBody { len, sender }) if len <= self.io.input.len() => {
                    // Nobody may want it any more.
                    _ = sender.send(self.io.take(len));
                }
                None if !self.io.input.is_empty() => break,
                waiting => *late = waiting,
            }
            match self.io.poll_fill(cx)? {
                Poll::Pending => break,
                Poll::Ready(true) => {}
                // The body is cut off: that is answered.
                Poll::Ready(false) if late.take().is_some() => self.ended = true,
                Poll::Ready(false) => return Err(ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(())
    }
}

/// Forgets so many bytes of what was read.
fn discard(input: &mut Vec<u8>, len: usize) {
    input.drain(..len);
    if input.is_empty() {
        *input = Vec::new();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// Takes so many bytes of what was read.
    fn take(&mut self, len: usize) -> Bytes {
        let bytes = Bytes::copy_from_slice(&self.input[..len]);
        discard(&mut self.input, len);
        bytes
    }

    /// Reads what is there, at most [`MOST`] bytes; `false` at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut buffer = [MaybeUninit::uninit(); MOST];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        self.input.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(!buffer.filled().is_empty()))
    }

    /// Writes the answers.
    async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.output.is_empty() {
            true => Poll::Ready(Ok(())),
            false => self.output.poll_write(&mut self.stream, cx),
        }
    }
}
