//! The answers that a connection owes: of requests that have their place in the order, and wait until they are stored.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;

use crate::server::answer::{Answer, Progress};
use crate::server::requests::Logged;

/// Most answers that one connection owes. With what was read, they take less than a connection may hold that has proved nothing.
pub(super) const MOST_OWED: usize = 32;

/// The answers that a connection owes, in the order of its requests. Without any it holds no memory.
#[derive(Default)]
pub(super) struct Owed(VecDeque<(OwedAnswer, bool)>);

enum OwedAnswer {
    Awaited(BoxFuture<'static, Answer>, Logged),
    /// It is there, but one in front of it is not.
    Known(Answer),
}

impl Owed {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Owes the answer to one more request. The connection ends after it if it `closes`. What is refused now was logged already.
    pub(super) fn push(&mut self, progress: Progress, closes: bool, logged: Logged) {
        let answer = match progress {
            Progress::Answered(answer) => OwedAnswer::Known(answer),
            Progress::Accepted(answer) => OwedAnswer::Awaited(answer, logged),
        };
        self.0.push_back((answer, closes));
    }

    /// Takes the next answer, and whether the connection ends after it. `None` if nothing is owed.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Answer, bool)>> {
        let Some((first, _)) = self.0.front_mut() else { return Poll::Ready(None) };
        if let OwedAnswer::Awaited(awaited, logged) = first {
            let answer = ready!(awaited.as_mut().poll(cx));
            if let Answer::Response(response) = &answer {
                logged.answered(response);
            }
            *first = OwedAnswer::Known(answer);
        }
        let next = match self.0.pop_front() {
            Some((OwedAnswer::Known(answer), closes)) => Some((answer, closes)),
            _ => None,
        };
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        Poll::Ready(next)
    }
}
