//! The answer to a change: known at once, or told when the change is stored.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::engine::EngineError;
use crate::message::Seq;

/// Resolves when a change is stored, to the seq that was the newest by then: of an append, its own.
///
/// Dropping it does not undo the change.
#[derive(Debug)]
#[must_use = "a change is confirmed only by its commit"]
pub struct Commit<E = EngineError>(CommitState<E>);

#[derive(Debug)]
enum CommitState<E> {
    /// Known at once; taken when it is polled.
    Known(Option<Result<Seq, E>>),
    /// Accepted; only whether it is stored is not known yet.
    Accepted(oneshot::Receiver<Result<Seq, EngineError>>),
    /// Neither accepted nor refused yet: another machine decides, or the commit of another change.
    Undecided(oneshot::Receiver<Result<Seq, E>>),
}

// Nothing in it is pinned.
impl<E> Unpin for Commit<E> {}

impl<E: From<EngineError>> Commit<E> {
    /// The answer is known.
    pub(crate) fn done(result: Result<Seq, E>) -> Self {
        Self(CommitState::Known(Some(result)))
    }

    /// The change is accepted; `stored` tells when it is stored.
    pub(crate) fn accepted(stored: oneshot::Receiver<Result<Seq, EngineError>>) -> Self {
        Self(CommitState::Accepted(stored))
    }

    /// `decided` tells whether the change is accepted and stored.
    pub(crate) fn undecided(decided: oneshot::Receiver<Result<Seq, E>>) -> Self {
        Self(CommitState::Undecided(decided))
    }

    /// Waits until the change is accepted or refused, and not until it is stored.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn decided(self) -> Result<(), E> {
        match self.0 {
            CommitState::Accepted(_) => Ok(()),
            CommitState::Known(_) | CommitState::Undecided(_) => self.await.map(|_| ()),
        }
    }
}

/// The engine stopped: whether the change was stored is not known.
fn closed<E: From<EngineError>>(_: oneshot::error::RecvError) -> Result<Seq, E> {
    Err(EngineError::Unavailable { reason: "the store was closed".into() }.into())
}

impl<E: From<EngineError>> Future for Commit<E> {
    type Output = Result<Seq, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            CommitState::Known(result) => {
                Poll::Ready(result.take().expect("not polled again after it was ready"))
            }
            CommitState::Accepted(stored) => Pin::new(stored).poll(cx).map(|stored| match stored {
                Ok(stored) => stored.map_err(E::from),
                Err(gone) => closed(gone),
            }),
            CommitState::Undecided(decided) => {
                Pin::new(decided).poll(cx).map(|decided| decided.unwrap_or_else(closed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::engine::RegisterError;

    #[tokio::test]
    async fn what_is_accepted_is_decided_before_it_is_stored() {
        let (store, stored) = oneshot::channel();
        let mut commit = Commit::<RegisterError>::accepted(stored);
        assert!((&mut commit).now_or_never().is_none(), "not stored yet");
        assert_eq!(commit.decided().now_or_never(), Some(Ok(())));
        assert!(store.is_closed());
    }

    #[tokio::test]
    async fn what_another_machine_decides_is_waited_for() {
        let (decide, decided) = oneshot::channel();
        let commit = Commit::<RegisterError>::undecided(decided);
        let waiting = tokio::spawn(commit.decided());
        decide.send(Err(RegisterError::Taken)).unwrap();
        assert_eq!(waiting.await.unwrap(), Err(RegisterError::Taken));
    }

    #[tokio::test]
    async fn a_store_that_closes_leaves_the_answer_unknown() {
        let (store, stored) = oneshot::channel();
        let commit = Commit::<EngineError>::accepted(stored);
        drop(store);
        assert!(matches!(commit.await, Err(EngineError::Unavailable { .. })));
        let refused = Commit::done(Err(RegisterError::Ended));
        assert_eq!(refused.await, Err(RegisterError::Ended));
    }
}
