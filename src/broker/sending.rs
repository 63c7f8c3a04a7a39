//! A message on its way into one mailbox, or into several.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::broker::BrokerError;
use crate::engine::{Commit, EngineError};
use crate::protocol::SendResult;

/// What a sender waits for.
#[derive(Debug)]
pub enum Sending {
    /// One message to be stored.
    One(Commit),
    /// The same message for each session of a user.
    Each(Fan),
    /// Handed to whoever was there; if sent to a user, to that many sessions.
    Volatile(Option<usize>),
}

/// One message for several mailboxes.
#[derive(Debug)]
pub struct Fan {
    waiting: Vec<Commit>,
    stored: usize,
    /// Why one of them was not stored: what passes by itself before what does not.
    refused: Option<EngineError>,
}

/// Whether the same send may succeed soon.
fn passes(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Overloaded { .. } | EngineError::Unavailable { .. } | EngineError::StoreFull { .. }
    )
}

impl Sending {
    pub(super) fn each(commits: impl Iterator<Item = Commit>) -> Self {
        Self::Each(Fan { waiting: commits.collect(), stored: 0, refused: None })
    }
}

/// Resolves when the message is stored. To a user, it succeeds if one mailbox has it and none has refused it for a
/// reason that passes: then the same send, with its id, is completed by a retry.
impl Future for Sending {
    type Output = Result<SendResult, BrokerError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::One(commit) => {
                Pin::new(commit).poll(cx).map(|seq| Ok(SendResult { seq: Some(seq?), sessions: None }))
            }
            Self::Volatile(sessions) => Poll::Ready(Ok(SendResult { seq: None, sessions: *sessions })),
            Self::Each(fan) => {
                let Fan { waiting, stored, refused } = fan;
                waiting.retain_mut(|commit| match Pin::new(commit).poll(cx) {
                    Poll::Pending => true,
                    Poll::Ready(Ok(_)) => {
                        *stored += 1;
                        false
                    }
                    Poll::Ready(Err(error)) => {
                        if refused.as_ref().is_none_or(|_| passes(&error)) {
                            *refused = Some(error);
                        }
                        false
                    }
                });
                if !waiting.is_empty() {
                    return Poll::Pending;
                }
                Poll::Ready(match refused.take() {
                    Some(error) if *stored == 0 || passes(&error) => Err(error.into()),
                    _ => Ok(SendResult { seq: None, sessions: Some(*stored) }),
                })
            }
        }
    }
}
