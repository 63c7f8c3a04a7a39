//! Why a server does not start, or ends.

use std::io;
use std::sync::Arc;

use crate::engine::embedded::OpenError;
use crate::reload::SetupError;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// A key or a certificate cannot be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// Why a server has ended other than by a stop in order.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not listen.
    #[error(transparent)]
    Listen(#[from] io::Error),
    /// The store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store cannot go on, for this reason.
    #[error("the store has failed: {0}; start the server again to recover what is stored")]
    Store(Arc<str>),
}
