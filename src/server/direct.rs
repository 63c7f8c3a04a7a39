//! Requests that skip the routes, since there are so many of them: polls and sends, handshakes of WebSockets, and everything of
//! the x0 client.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::Method;
use axum::response::Response;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::edge::{Gateway, RequestHead};
use crate::server::answer::{Answer, Begun, Progress, header_lines};
use crate::server::router::HostCheck;
use crate::transport::legacy::{self, Legacy, LegacyAnswer, LegacyPath, LegacyProgress};
use crate::transport::poll::{self, Polls};
use crate::transport::{sse, websocket};

mod native;

use native::Native;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// To the transport of the x0 client. The checks of the other routes are not for it.
    X0(LegacyPath),
    /// To the native long-poll.
    Poll,
    /// To polls in bodies, or to the routes.
    PostedPoll,
    /// To the call that sends, or to the routes.
    Send,
    /// To the call that acknowledges, or to the routes.
    Ack,
    /// To a WebSocket.
    Socket,
    /// To Server-Sent Events, through the routes.
    Events,
    /// To the routes.
    Routes,
}

/// Other addresses of clients that poll.
const OF_POLLING_CLIENTS: [(&str, Door); 3] =
    [(poll::POSTED_PATH, Door::PostedPoll), ("/v1/messages", Door::Send), ("/v1/ack", Door::Ack)];

/// The methods and addresses that clients use which poll.
pub(super) fn doors() -> impl Iterator<Item = (Method, &'static str, Door)> {
    let x0 = legacy::PATHS.into_iter().map(|(path, x0)| (Method::POST, path, Door::X0(x0)));
    let others = OF_POLLING_CLIENTS.into_iter().map(|(path, door)| (Method::POST, path, door));
    let sockets = [(Method::GET, websocket::PATH, Door::Socket), (Method::GET, sse::PATH, Door::Events)];
    x0.chain([(Method::GET, poll::PATH, Door::Poll)]).chain(others).chain(sockets)
}

impl Door {
    /// The name of the door of a request in the log: that of a transport, or `http`.
    pub(super) fn name_of(path: &str, method: &Method) -> &'static str {
        match path {
            websocket::PATH => "websocket",
            sse::PATH => "sse",
            poll::POSTED_PATH => "poll",
            poll::PATH if *method == Method::GET => "poll",
            path if legacy::is_path(path) => "legacy",
            _ => "http",
        }
    }

    /// The same of a request that is here.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::X0(_) => "legacy",
            Self::Poll | Self::PostedPoll => "poll",
            Self::Send | Self::Ack | Self::Routes => "http",
            Self::Socket => "websocket",
            Self::Events => "sse",
        }
    }

    /// Where a request with this method and path goes that hyper has read.
    pub(super) fn of(method: &Method, path: &str) -> Self {
        match legacy::path_of(path) {
            Some(x0) => Self::X0(x0),
            None if *method == Method::GET && path == poll::PATH => Self::Poll,
            None => Self::Routes,
        }
    }
}

/// What answers these requests. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Direct {
    x0: Legacy,
    native: Native,
    /// The headers of most answers to the x0 client.
    x0_lines: Arc<[u8]>,
}

impl Direct {
    /// These transports of a broker that checks hosts like this.
    pub(super) fn new(gateway: &Arc<Gateway>, x0: Legacy, polls: Polls, hosts: Option<HostCheck>) -> Self {
        let native = Native::new(gateway, polls, hosts);
        Self { x0, native, x0_lines: header_lines(&Legacy::open_headers()) }
    }

    /// Answers a request of the x0 client.
    pub(super) fn x0(&self, path: LegacyPath, request: Request) -> BoxFuture<'static, Response> {
        self.x0.answer(path, request)
    }

    /// Answers a native poll. Its head may go while it waits.
    pub(super) fn poll(&self, request: &Request) -> BoxFuture<'static, Response> {
        self.native.poll(request)
    }

    /// Answers a request of which all has come. `None` says nothing: such a request has to be parsed.
    ///
    /// Boxed: a connection makes room for the largest of its answers before its first request.
    pub(super) fn answer_raw(&self, door: Door, head: RequestHead<'_>, body: &[u8]) -> Option<Begun> {
        match door {
            Door::X0(path) => {
                let lines = Arc::clone(&self.x0_lines);
                let (answering, joins) = self.x0.answer_small(path, head, body)?;
                let progress = Box::pin(answering.map(|progress| match progress {
                    LegacyProgress::Answered(answer) => with_lines(lines, answer).into(),
                    LegacyProgress::Accepted(stored) => {
                        Progress::Accepted(Box::pin(stored.map(|answer| with_lines(lines, answer))))
                    }
                }));
                Some(Begun { progress, joins })
            }
            Door::Poll => Some(self.native.poll_raw(head)),
            Door::PostedPoll => self.native.posted_poll_raw(head, body),
            Door::Send => self.native.send_raw(head, body),
            Door::Ack => self.native.ack_raw(head, body),
            Door::Socket | Door::Events | Door::Routes => None,
        }
    }
}

/// An answer to the x0 client, with these headers where it is a text.
fn with_lines(lines: Arc<[u8]>, answer: LegacyAnswer) -> Answer {
    match answer {
        LegacyAnswer::Text(text) => Answer::Text(lines, text),
        LegacyAnswer::Response(response) => Answer::Response(response),
    }
}
