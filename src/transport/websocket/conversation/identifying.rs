//! A `hello` on its way to a caller.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use sync_wrapper::SyncWrapper;

use crate::edge::Refusal;
use crate::grant::Grant;
use crate::protocol::Resume;

/// A `hello` whose caller is not known yet: the keys of tokens may have to be fetched first.
pub(super) struct Identifying {
    /// Where the caller resumes.
    resume: Resume,
    /// The wrapper makes it shareable, as everything is that a handler holds.
    identity: SyncWrapper<BoxFuture<'static, Result<Grant, Refusal>>>,
}

impl Identifying {
    pub(super) fn new(resume: Resume, identity: BoxFuture<'static, Result<Grant, Refusal>>) -> Self {
        Self { resume, identity: SyncWrapper::new(identity) }
    }

    pub(super) fn resume(&self) -> &Resume {
        &self.resume
    }

    /// Polls for who it is.
    pub(super) fn poll_identity(&mut self, cx: &mut Context<'_>) -> Poll<Result<Grant, Refusal>> {
        self.identity.get_mut().as_mut().poll(cx)
    }
}
