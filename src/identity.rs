//! Checks what a request shows: tokens and API keys. The result is what a [`Grant`](crate::grant::Grant) is made of.
//!
//! In `open` mode a request needs no credentials. In `token` mode clients show a token and backends an API key.

use std::sync::Arc;

use crate::config::{Access, Auth};
use crate::grant::Backend;
use crate::reload::{Current, SetupError};

mod api_key;
mod jwks;
mod key;
mod token;

use api_key::ApiKeys;
pub(crate) use key::sign;
pub(crate) use token::{Claims, CredentialError, Tokens, verify_with_secret};

/// What came with a request.
#[derive(Debug)]
pub(crate) enum Credentials {
    /// Nothing.
    None,
    /// A good token.
    Token(Claims),
    /// An API key.
    Backend(Arc<Backend>),
}

/// What proofs are checked against.
#[derive(Debug)]
pub(crate) struct Identity {
    auth: Auth,
    tokens: Option<Tokens>,
    backends: Current<ApiKeys>,
    /// Whether there are to be API keys, whatever has become of them.
    has_keys: bool,
}

impl Identity {
    /// Reads the keys, and goes on watching them. Call it within a tokio runtime, whose end ends that.
    ///
    /// # Errors
    /// [`SetupError`] names the file that cannot be used, and why.
    pub(crate) fn new(access: &Access) -> Result<Self, SetupError> {
        let tokens = match access.auth {
            Auth::Open => None,
            Auth::Token => Tokens::new(access)?,
        };
        let backends = ApiKeys::watch(access)?;
        if access.auth == Auth::Token && tokens.is_none() && backends.get().is_empty() {
            let text = "--auth token needs something to check proofs with: --token-key-file, --token-jwks-url, \
                        X0_MSG_TOKEN_SECRET, --api-key-file or X0_MSG_API_KEYS";
            return Err(SetupError(text.to_owned()));
        }
        let has_keys = access.api_key_file.is_some() || access.secrets.api_keys.is_some();
        Ok(Self { auth: access.auth, tokens, backends, has_keys })
    }

    /// How clients prove who they are.
    #[must_use]
    pub(crate) fn auth(&self) -> Auth {
        self.auth
    }

    /// Whether sessions may be managed without a key.
    #[must_use]
    pub(crate) fn manages_without_key(&self) -> bool {
        self.auth == Auth::Open && !self.has_keys
    }

    /// Whether a backend's key is still known.
    #[must_use]
    pub(crate) fn knows_backend(&self, backend: &Backend) -> bool {
        self.backends.get().hold(backend)
    }

    /// Checks what came with a request: the bearer of its `Authorization` header, or the `token` of a `hello`.
    ///
    /// # Errors
    /// [`CredentialError`] says what is wrong with it.
    pub(crate) async fn check(&self, bearer: Option<&str>) -> Result<Credentials, CredentialError> {
        let Some(bearer) = bearer else { return Ok(Credentials::None) };
        let backends = self.backends.get();
        if let Some(backend) = backends.find(bearer) {
            return Ok(Credentials::Backend(backend));
        }
        match &self.tokens {
            Some(tokens) => tokens.verify(bearer).await.map(Credentials::Token),
            // In `open` mode nobody has to prove anything; only a key that was to allow something must be right.
            None if self.auth == Auth::Open && (!self.has_keys || Tokens::is_one(bearer)) => {
                Ok(Credentials::None)
            }
            None => Err(CredentialError::Invalid("this is none of the API keys known here".to_owned())),
        }
    }
}
