//! Why a server does not start, or ends.

use std::io;
use std::sync::Arc;

use crate::engine::embedded::OpenError;
#[cfg(feature = "nats")]
use crate::engine::nats::NatsError;
use crate::reload::SetupError;

/// Why messages cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum EngineStartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// NATS cannot be used.
    #[cfg(feature = "nats")]
    #[error(transparent)]
    Nats(#[from] NatsError),
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Messages cannot be stored.
    #[error(transparent)]
    Engine(#[from] EngineStartError),
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
    /// Messages cannot be stored.
    #[error(transparent)]
    Open(#[from] EngineStartError),
    /// The store cannot go on, for this reason.
    #[error("the store has failed: {0}; start the server again to recover what is stored")]
    Store(Arc<str>),
}
