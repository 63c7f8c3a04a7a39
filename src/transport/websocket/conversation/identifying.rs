//! A `hello` on its way to a caller.

use futures::future::BoxFuture;
use sync_wrapper::SyncWrapper;

use crate::edge::Refusal;
use crate::grant::Grant;
use crate::protocol::Resume;

/// A `hello` whose caller is not known yet: the keys of tokens may have to be fetched first.
pub(in crate::transport::websocket) struct Identifying {
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

    /// Who it is.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped before it is ready.
    pub(in crate::transport::websocket) async fn identity(&mut self) -> Result<Grant, Refusal> {
        self.identity.get_mut().await
    }
}
