//! The answer to what is to be stored: known at once, or told when it is committed.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::engine::EngineError;
use crate::message::Seq;

/// Resolves to the seq of a stored message.
#[derive(Debug)]
#[must_use = "an append is confirmed only by its commit"]
pub struct Commit(CommitState);

#[derive(Debug)]
enum CommitState {
    /// Known already; taken when it is asked for.
    Known(Option<Result<Seq, EngineError>>),
    /// Told by the writer.
    Later(oneshot::Receiver<Result<Seq, EngineError>>),
}

impl Commit {
    pub(crate) fn done(result: Result<Seq, EngineError>) -> Self {
        Self(CommitState::Known(Some(result)))
    }

    /// Whether it was refused at once: nothing has changed.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.0, CommitState::Known(Some(Err(_))))
    }

    pub(crate) fn later(told: oneshot::Receiver<Result<Seq, EngineError>>) -> Self {
        Self(CommitState::Later(told))
    }
}

impl Future for Commit {
    type Output = Result<Seq, EngineError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            CommitState::Known(result) => {
                Poll::Ready(result.take().expect("not asked again after it was ready"))
            }
            CommitState::Later(told) => Pin::new(told).poll(cx).map(|told| {
                // The writer is gone: what became of the message is not known.
                told.unwrap_or_else(|_| {
                    Err(EngineError::Unavailable { reason: "the store was closed".into() })
                })
            }),
        }
    }
}
