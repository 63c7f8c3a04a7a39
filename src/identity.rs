//! Checks of tokens and API keys.
//!
//! In `open` mode a request needs no credentials. In `token` mode clients show a token, or the id of a session that is
//! registered with `proof`, and backends an API key.

use std::sync::Arc;

use crate::config::{Access, Auth};
use crate::grant::Backend;
use crate::message::BackendName;
use crate::reload::{Current, SetupError};
use crate::reloadable::Reloadable;

mod api_key;
mod error;
mod id_strength;
mod jwks;
mod key;
mod token;

use api_key::ApiKeys;
pub(crate) use error::CredentialError;
pub(crate) use id_strength::{WeakId, check_id_strength};
pub(crate) use key::sign;
pub(crate) use token::{Claims, TokenVerifier, verify_with_secret};

/// The checked credentials of a request.
#[derive(Debug)]
pub(crate) enum Credentials {
    /// The request has no credentials.
    None,
    /// A valid token.
    Token(Claims),
    /// An API key.
    Backend(Arc<Backend>),
}

/// Checks the credentials of requests.
#[derive(Debug)]
pub(crate) struct Identity {
    auth: Auth,
    /// A reload replaces them.
    keys: Reloadable<Keys>,
}

/// What credentials are checked with.
#[derive(Debug)]
pub(crate) struct Keys {
    tokens: Option<TokenVerifier>,
    api_keys: Current<ApiKeys>,
    /// Whether API keys are configured, even if their file holds none now.
    has_api_keys: bool,
}

impl Keys {
    /// Reads the keys and watches their files. Those of `previous` with the same JWK set share it.
    fn read(access: &Access, previous: Option<(&Access, &Self)>) -> Result<Self, SetupError> {
        let previous = previous.and_then(|(access, keys)| Some((access, keys.tokens.as_ref()?)));
        let tokens = match access.auth {
            Auth::Open => None,
            Auth::Token => TokenVerifier::new(access, previous)?,
        };
        let api_keys = ApiKeys::watch(access)?;
        if access.auth == Auth::Token && tokens.is_none() && api_keys.get().is_empty() {
            let text = "--auth token needs keys: --token-key-file, --token-jwks-url, \
                        X0_MSG_TOKEN_SECRET, --api-key-file or X0_MSG_API_KEYS";
            return Err(SetupError(text.to_owned()));
        }
        Ok(Self { tokens, api_keys, has_api_keys: access.has_api_keys() })
    }
}

impl Identity {
    /// Reads the keys and watches their files. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`SetupError`] names the file or the flag that cannot be used, and why.
    pub(crate) fn new(access: &Access) -> Result<Self, SetupError> {
        Ok(Self { auth: access.auth, keys: Reloadable::new(Keys::read(access, None)?) })
    }

    /// Reads the keys of other settings, in place of those of the running ones. Call it within a tokio runtime.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn prepare(&self, running: &Access, wanted: &Access) -> Result<Keys, SetupError> {
        Keys::read(wanted, Some((running, &self.keys.hold())))
    }

    /// Checks credentials with these keys from now on.
    pub(crate) fn replace(&self, keys: Keys) {
        self.keys.set(keys);
    }

    /// The mode of authentication.
    #[must_use]
    pub(crate) fn auth(&self) -> Auth {
        self.auth
    }

    /// Whether sessions may be managed without a key.
    #[must_use]
    pub(crate) fn manages_without_key(&self) -> bool {
        self.auth == Auth::Open && !self.keys.get().has_api_keys
    }

    /// Whether a request can need credentials. An `open` broker without API keys ignores them all.
    #[must_use]
    pub(crate) fn checks_credentials(&self) -> bool {
        !self.manages_without_key()
    }

    /// Whether the key of a backend is still valid.
    #[must_use]
    pub(crate) fn knows_backend(&self, backend: &Backend) -> bool {
        self.keys.get().api_keys.get().contains(backend)
    }

    /// Whether an API key gives this backend a mailbox.
    #[must_use]
    pub(crate) fn has_mailbox(&self, name: &BackendName) -> bool {
        self.keys.get().api_keys.get().has_mailbox(name)
    }

    /// Checks the bearer of an `Authorization` header, or the `token` of a `hello`. White space around it is ignored, as
    /// a file may add some.
    ///
    /// # Errors
    /// [`CredentialError`] says why it is not accepted.
    pub(crate) async fn check(&self, bearer: Option<&str>) -> Result<Credentials, CredentialError> {
        let Some(bearer) = bearer.map(str::trim) else { return Ok(Credentials::None) };
        let keys = self.keys.hold();
        if let Some(backend) = keys.api_keys.get().find(bearer) {
            return Ok(Credentials::Backend(backend));
        }
        match &keys.tokens {
            Some(tokens) => tokens.verify(bearer).await.map(Credentials::Token),
            // `open` mode needs no credentials. But an API key that is wrong must not pass as none.
            None if self.auth == Auth::Open
                && (!keys.has_api_keys || TokenVerifier::looks_like_token(bearer)) =>
            {
                Ok(Credentials::None)
            }
            None if self.auth == Auth::Open => {
                Err(CredentialError::Unknown("this API key is not known here".to_owned()))
            }
            None => Err(CredentialError::Unknown(
                "this is not known here, neither as an API key nor as the id of a session that is registered with `proof`"
                    .to_owned(),
            )),
        }
    }
}
