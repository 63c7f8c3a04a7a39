//! Why credentials are not accepted.

/// Why a token or an API key is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialError {
    /// It is neither a known API key nor a token that a known key signed. It may be a guess.
    #[error("{0}")]
    Unknown(String),
    /// A known key signed the token, but the token is not accepted: it has expired, for example.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be checked now.
    #[error("{0}")]
    Unavailable(String),
}
