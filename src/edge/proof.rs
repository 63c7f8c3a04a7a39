//! Proofs: what a request shows, whether it is right, and for how long. Wrong ones count by the address of the client.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::Auth;
use crate::directory::IdScope;
use crate::edge::gateway::Gateway;
use crate::edge::refusal::Refusal;
use crate::grant::{Client, Proof};
use crate::identity::{CredentialError, Credentials};
use crate::message::SessionId;
use crate::metrics::{self, Rejected};
use crate::protocol::Code;

/// What a request shows of its caller.
#[derive(Debug, Default)]
pub(crate) struct Shown<'a> {
    /// The bearer: an API key, a token, or the id of a session.
    pub bearer: Option<&'a str>,
    /// The session that it names.
    pub session: Option<NamedSession>,
    /// The address of the client. `None` in tests without a socket.
    pub address: Option<IpAddr>,
}

/// The session that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NamedSession {
    /// In the address of the request, which logs show: its id proves nothing.
    InAddress(SessionId),
    /// In a frame or a body.
    Hidden(SessionId),
}

impl NamedSession {
    /// The id of the session.
    #[must_use]
    pub(super) fn id(&self) -> &SessionId {
        match self {
            Self::InAddress(session) | Self::Hidden(session) => session,
        }
    }
}

/// What a bearer proves.
#[derive(Debug)]
pub(crate) enum Proved {
    /// An API key or a token. Or nothing: there is no bearer.
    Credentials(Credentials),
    /// The session of this client, by its id.
    Session(Client),
}

impl Gateway {
    /// What a bearer proves: it is tried as an API key, as a token, and as the id of a session. Right keys and tokens are
    /// accepted from any address, however many wrong ones it has shown.
    ///
    /// # Errors
    /// `unauthorized` if it proves nothing, or `rate_limited` if the address has shown too many wrong proofs. `unavailable` while
    /// the keys of tokens cannot be fetched.
    pub(super) async fn check_bearer(
        &self,
        bearer: Option<&str>,
        address: Option<IpAddr>,
    ) -> Result<Proved, Refusal> {
        let error = match self.identity.check(bearer).await {
            Ok(credentials) => return Ok(Proved::Credentials(credentials)),
            Err(error) => error,
        };
        let text = match error {
            CredentialError::Unknown(text) => text,
            CredentialError::Invalid(_) => {
                metrics::rejected(Rejected::Invalid).count();
                return Err(error.into());
            }
            CredentialError::Unavailable(_) => {
                metrics::rejected(Rejected::NoKeys).count();
                return Err(error.into());
            }
        };
        match bearer.and_then(|bearer| SessionId::new(bearer.trim()).ok()) {
            Some(session) if self.identity.auth() == Auth::Token => {
                Ok(Proved::Session(self.check_id(&session, address, &text).await?))
            }
            _ => Err(self.wrong_proof(address, text)),
        }
    }

    /// The client that shows the id of its session as the proof. `otherwise` says why an unknown id is refused.
    ///
    /// # Errors
    /// Those of [`Self::check_bearer`].
    pub(super) async fn check_id(
        &self,
        session: &SessionId,
        address: Option<IpAddr>,
        otherwise: &str,
    ) -> Result<Client, Refusal> {
        let attempt = self.failed_proofs.begin(address, session).map_err(|_| too_many_wrong())?;
        let directory = self.broker.directory();
        if let Some(client) = directory.holder(session, IdScope::Everywhere).await {
            attempt.succeed();
            return Ok(client);
        }
        metrics::rejected(Rejected::Unknown).count();
        // No guess: a page of x0 tries this whose backend asks for no proof.
        if directory.id_left(session, IdScope::X0).is_zero() {
            return Err(Refusal::new(Code::Unauthorized, otherwise));
        }
        attempt.forgive();
        let text = "this session is registered without `proof`: its id is accepted in requests of the x0 client only";
        Err(Refusal::new(Code::Unauthorized, text))
    }

    /// The refusal of a wrong proof, which counts.
    fn wrong_proof(&self, address: Option<IpAddr>, text: String) -> Refusal {
        match self.failed_proofs.charge(address) {
            Ok(()) => {
                metrics::rejected(Rejected::Unknown).count();
                Refusal::new(Code::Unauthorized, text)
            }
            Err(_) => too_many_wrong(),
        }
    }

    /// How long a client's proof is accepted from now on, as far as this node knows at once. For the id of a session that is
    /// asked anew each time, since its backend may prolong it; so it does not depend on a clock that is set.
    #[must_use]
    pub(crate) fn known_proof_left(&self, client: &Client) -> Duration {
        match client.proof {
            Proof::Token(expiry) => expiry.accepted_for(self.broker.now()),
            Proof::SessionId => self.broker.directory().proof_left(client),
        }
    }

    /// How long a client's proof is accepted from now on, as far as all nodes know.
    pub(crate) async fn proof_left(&self, client: &Client) -> Duration {
        let left = self.known_proof_left(client);
        if left > Duration::ZERO || client.proof != Proof::SessionId {
            return left;
        }
        // Boxed: this is rare, and what waits should not hold its memory.
        drop(Box::pin(self.broker.directory().holder(&client.session, IdScope::Everywhere)).await);
        self.known_proof_left(client)
    }
}

/// The refusal of another proof from an address that has shown too many wrong ones.
fn too_many_wrong() -> Refusal {
    metrics::rejected(Rejected::TooMany).count();
    let text =
        "too many wrong tokens, API keys or session ids from this address; wait a second and try again";
    Refusal::new(Code::RateLimited, text)
}
