//! What comes next on a connection: a request, or its end. Meanwhile the answers that are owed are written.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::head::{self, Begin, MOST, Plain, RawRequest};
use super::owed::MOST_OWED;
use super::{Answering, Connection, Next};
use crate::edge::RequestHead;
use crate::server::answer::Begun;
use crate::server::requests::{self, Logged};

/// How much of the input was looked at.
#[derive(Debug, Default)]
struct Look {
    seen: usize,
    /// Bytes of a request, of which a part of the body has come.
    whole: Option<usize>,
}

/// What happened on a connection.
enum Event {
    /// No answer is owed any more.
    Settled,
    /// Something was read.
    Read,
    /// The peer sends no more.
    End,
    /// The server stops.
    Stopped,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection<S> {
    /// Waits for the next request, for the header timeout at most since it began and no answer is owed. After the shutdown it
    /// waits only for one that has begun, unless another process takes the connection. Before it waits, and before somebody else goes on, the answers so far are written.
    pub(super) async fn next(&mut self, mut begun: Instant) -> io::Result<Next> {
        let (mut look, mut stops) = (Look::default(), true);
        loop {
            if self.closes && self.io.owed.is_empty() {
                self.io.flush().await?;
                return Ok(Next::End);
            }
            if self.takes_requests() {
                match self.look(&mut look) {
                    Some(next @ (Next::Answering(_) | Next::Request(_))) => return Ok(next),
                    Some(next) => {
                        poll_fn(|cx| self.poll_owed((0, false), cx)).await?;
                        self.io.flush().await?;
                        return Ok(next);
                    }
                    None => {}
                }
            }
            self.io.flush().await?;
            let deadline = begun + self.server.header_timeout;
            let event = poll_fn(|cx| self.poll_event(deadline, stops, cx)).await?;
            let is_idle = self.io.input.is_empty() && self.io.owed.is_empty();
            match event {
                Event::Settled => (begun, look) = (Instant::now(), Look::default()),
                Event::Read => {}
                Event::Stopped if self.io.owed.is_empty() && self.server.passing.takes(&self.link) => {
                    return Ok(Next::Passed);
                }
                Event::End | Event::Stopped if is_idle => return Ok(Next::End),
                Event::Stopped => stops = false,
                Event::End => {
                    // As with hyper: the peer is told of the requests before the last one.
                    let spared = usize::from(self.io.input.is_empty());
                    poll_fn(|cx| self.poll_owed((spared, false), cx)).await?;
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }

    /// Whether the next request may begin. While answers are owed, none begins after a stop: the last answer says that the connection
    /// ends.
    fn takes_requests(&self) -> bool {
        self.io.owed.is_empty()
            || self.io.owed.len() < MOST_OWED && !self.closes && !self.server.shutdown.is_cancelled()
    }

    /// Waits until something is read, or all owed answers are there. Also for the stop of the server, if it `stops`.
    fn poll_event(
        &mut self,
        deadline: Instant,
        stops: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Event>> {
        if !self.io.owed.is_empty() && self.poll_owed((0, true), cx)?.is_ready() {
            return Poll::Ready(Ok(Event::Settled));
        }
        // What is not looked at is read only as far as it shows that the peer is there.
        if (self.takes_requests() || self.io.input.is_empty())
            && let Poll::Ready(is_more) = self.io.poll_fill(cx)?
        {
            return Poll::Ready(Ok(if is_more { Event::Read } else { Event::End }));
        }
        if stops {
            // Made once, and not for each request.
            let stopped = || Box::pin(self.server.shutdown.clone().cancelled_owned());
            if self.stopped.get_or_insert_with(stopped).as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(Event::Stopped));
            }
        }
        if self.io.owed.is_empty() {
            ready!(self.timer.poll(deadline, cx));
            return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "no head in time")));
        }
        Poll::Pending
    }

    /// Writes the answers that are owed, in the order of their requests, until no more than the `spared` ones are awaited. What
    /// was there last may not be written yet. If the last one `is_last`, the connection ends after it once the server stops.
    pub(super) fn poll_owed(
        &mut self,
        (spared, is_last): (usize, bool),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.io.owed.poll_next(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some((answer, closes))) => {
                    let stops = is_last && self.io.owed.is_empty() && self.server.shutdown.is_cancelled();
                    self.closes |= closes || stops;
                    self.io.output.push(answer, closes || stops)?;
                }
                Poll::Pending => {
                    let is_written = self.io.poll_flush(cx)?.is_ready();
                    if is_written && self.io.owed.len() <= spared {
                        return Poll::Ready(Ok(()));
                    }
                    return Poll::Pending;
                }
            }
            if self.io.output.is_large() {
                ready!(self.io.poll_flush(cx))?;
            }
        }
    }

    /// Looks at what has come, as often as hyper does: at what comes first, and then when the head may be whole. While answers are
    /// owed, the rest of a body is waited for: such a request then joins those in front of it.
    fn look(&mut self, look: &mut Look) -> Option<Next> {
        let (server, link, input) = (&self.server, &self.link, &mut self.io.input);
        let before = std::mem::replace(&mut look.seen, input.len());
        let may_be_whole = match look.whole {
            Some(whole) => input.len() >= whole,
            None => before == 0 || input.len() >= MOST || head::may_end(input, before),
        };
        if input.len() == before || !may_be_whole {
            return None;
        }
        let answer = |door, RawRequest { query, headers, body }: RawRequest<'_>| {
            let begun =
                server.routes.answer_raw(door, RequestHead::over_http1(query, headers, link), body)?;
            let logged = Logged::new(door.name(), &server.access.get(), link, headers);
            let progress = requests::traced(logged.span(headers), begun.progress);
            Some((Begun { progress, ..begun }, logged))
        };
        match head::parse(input, link, answer) {
            Begin::Answering((Begun { progress, joins }, logged), Plain { len, body, closes }) => {
                super::discard(input, len + body);
                Some(Next::Answering(Answering { progress, joins, logged, late: None, closes }))
            }
            Begin::Head(head) => {
                let whole = head.plain.len + head.plain.body;
                if !self.io.owed.is_empty() && input.len() < whole {
                    look.whole = Some(whole);
                    return None;
                }
                Some(Next::Request(head))
            }
            Begin::Opening(opening, len) => Some(Next::Opening(opening, len)),
            Begin::Other => Some(Next::Other),
            Begin::Part => None,
        }
    }
}
