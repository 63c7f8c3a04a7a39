//! Tokens: JSON Web Tokens (RFC 7519), signed with HS256, RS256, ES256 or EdDSA.

use std::path::PathBuf;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;

use crate::config::{Access, Secret};
use crate::grant::{Patterns, SKEW, SendPatterns};
use crate::identity::jwks::Jwks;
use crate::identity::key::{VerificationKey, read_keys, secret_key};
use crate::message::{SessionId, UserId};
use crate::reload::{Current, SetupError, watch_files};

/// Why a token was not accepted, or an API key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialError {
    /// It is wrong. The text says why.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be checked now.
    #[error("{0}")]
    Unavailable(String),
}

/// Longest token, in bytes.
const LONGEST: usize = 8 * 1024;

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Who (`sub`).
    pub user: UserId,
    /// Which session (`sid`).
    pub session: Option<SessionId>,
    /// Until when (`exp`), in Unix milliseconds.
    pub expires: u64,
    /// Where it may send.
    pub send: Option<SendPatterns>,
    /// Which topics it may read.
    pub topics: Option<Patterns>,
}

#[derive(Deserialize)]
struct RawClaims {
    sub: Option<String>,
    sid: Option<String>,
    exp: f64,
    send: Option<SendPatterns>,
    topics: Option<Patterns>,
}

/// What tokens are verified with.
#[derive(Debug)]
pub(crate) struct Tokens {
    files: Current<Vec<VerificationKey>>,
    jwks: Option<Jwks>,
    audience: Vec<String>,
    issuer: Vec<String>,
}

/// Why a token was not taken.
enum Refused {
    /// No key here could have signed it.
    UnknownKey,
    Because(String),
}

impl Tokens {
    /// Reads the keys, and goes on watching them; `None` if there are none to read.
    pub(super) fn new(access: &Access) -> Result<Option<Self>, SetupError> {
        let secret = access.secrets.token.clone();
        if access.token_key_file.is_empty() && secret.is_none() && access.token_jwks_url.is_none() {
            return Ok(None);
        }
        let files =
            watch_files("the keys of tokens", access.token_key_file.clone(), move |paths: &[PathBuf]| {
                let mut keys = Vec::new();
                if let Some(Secret(secret)) = &secret {
                    let told = |why| SetupError(format!("X0_MSG_TOKEN_SECRET: {why}"));
                    keys.push(secret_key(secret.as_bytes()).map_err(told)?);
                }
                for path in paths {
                    keys.extend(read_keys(path)?);
                }
                Ok::<_, SetupError>(keys)
            })?;
        if access.token_jwks_url.is_some() && access.token_audience.is_empty() {
            tracing::warn!(
                "without --token-audience, tokens that --token-jwks-url's issuer signs for others are taken too"
            );
        }
        let jwks = access.token_jwks_url.as_deref();
        let jwks = jwks.map(|url| Jwks::watch(url, access.token_jwks_refresh)).transpose()?;
        let (audience, issuer) = (access.token_audience.clone(), access.token_issuer.clone());
        Ok(Some(Self { files, jwks, audience, issuer }))
    }

    /// Whether this has the shape of a token.
    #[must_use]
    pub(crate) fn is_one(text: &str) -> bool {
        text.split('.').count() == 3
    }

    /// Verifies a token: its signature, times, audience and issuer.
    ///
    /// # Errors
    /// [`CredentialError`] says what is wrong with it.
    pub(crate) async fn verify(&self, token: &str) -> Result<Claims, CredentialError> {
        const UNKNOWN: &str = "the token is signed with no key that is known here";
        match self.try_verify(token) {
            Ok(claims) => return Ok(claims),
            Err(Refused::Because(why)) => return Err(CredentialError::Invalid(why)),
            Err(Refused::UnknownKey) => {}
        }
        let Some(jwks) = &self.jwks else { return Err(CredentialError::Invalid(UNKNOWN.to_owned())) };
        // Keys are rotated: there may be a new one.
        jwks.ask().await;
        match self.try_verify(token) {
            Ok(claims) => Ok(claims),
            Err(Refused::Because(why)) => Err(CredentialError::Invalid(why)),
            Err(Refused::UnknownKey) if jwks.keys().is_none() => Err(CredentialError::Unavailable(
                "the keys of tokens cannot be fetched now (--token-jwks-url); try again in a moment"
                    .to_owned(),
            )),
            Err(Refused::UnknownKey) => Err(CredentialError::Invalid(UNKNOWN.to_owned())),
        }
    }

    fn try_verify(&self, token: &str) -> Result<Claims, Refused> {
        let because = |why: &str| Refused::Because(why.to_owned());
        if token.len() > LONGEST {
            let text = format!("the token is {} bytes long; at most {LONGEST} are allowed", token.len());
            return Err(Refused::Because(text));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| {
            because("this is neither an API key known here nor a token (a JWT signed with HS256, RS256, ES256 or EdDSA)")
        })?;
        let (files, jwks) = (self.files.get(), self.jwks.as_ref().and_then(Jwks::keys));
        let keys = || files.iter().chain(jwks.iter().flat_map(|keys| keys.iter()));
        let usable = || keys().filter(|key| key.algorithm == header.alg);
        // A `kid` names its key. Keys of files have no name of their own: a token may call them as it likes.
        let named = header.kid.as_ref().filter(|kid| usable().any(|key| key.kid.as_ref() == Some(*kid)));
        let mut refused = Refused::UnknownKey;
        for key in usable() {
            let fits = match (named, &header.kid) {
                (Some(kid), _) => key.kid.as_ref() == Some(kid),
                (None, Some(_)) => key.kid.is_none(),
                (None, None) => true,
            };
            if !fits {
                continue;
            }
            match jsonwebtoken::decode::<RawClaims>(token, &key.key, &self.validation(key.algorithm)) {
                Ok(token) => return claims(token.claims).map_err(Refused::Because),
                Err(error) => match explain(error.kind()) {
                    Some(why) => return Err(Refused::Because(why)),
                    None => refused = because("the token's signature is wrong"),
                },
            }
        }
        // It may be signed with a key by that name that is not here yet.
        Err(if header.kid.is_some() && named.is_none() && self.jwks.is_some() {
            Refused::UnknownKey
        } else {
            refused
        })
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = SKEW;
        validation.validate_nbf = true;
        validation.validate_aud = !self.audience.is_empty();
        let mut required = vec!["exp"];
        if !self.audience.is_empty() {
            required.push("aud");
            validation.set_audience(&self.audience);
        }
        if !self.issuer.is_empty() {
            required.push("iss");
            validation.set_issuer(&self.issuer);
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

/// What is wrong with a token whose signature is right; `None` if that is wrong.
fn explain(error: &ErrorKind) -> Option<String> {
    let text = match error {
        ErrorKind::ExpiredSignature => "the token has expired (`exp`); get a fresh one".to_owned(),
        ErrorKind::ImmatureSignature => "the token is not good yet (`nbf`)".to_owned(),
        ErrorKind::InvalidAudience => "the token is meant for somebody else (`aud`)".to_owned(),
        ErrorKind::InvalidIssuer => "the token comes from somebody unknown here (`iss`)".to_owned(),
        ErrorKind::MissingRequiredClaim(claim) => format!("the token has no claim `{claim}`"),
        ErrorKind::InvalidClaimFormat(claim) => {
            format!("the token's claim `{claim}` is not what it should be")
        }
        ErrorKind::Json(error) => format!("the token's claims are not what they should be: {error}"),
        _ => return None,
    };
    Some(text)
}

fn claims(raw: RawClaims) -> Result<Claims, String> {
    let user = raw.sub.ok_or("the token has no claim `sub`, which names its user")?;
    let user = UserId::new(&user).map_err(|why| format!("the token's claim `sub` {why}"))?;
    let session =
        raw.sid.map(|sid| SessionId::new(&sid).map_err(|why| format!("the token's claim `sid` {why}")));
    // Whole milliseconds, within what 64 bits and JavaScript hold.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let expires = (raw.exp * 1000.0).clamp(0.0, 9.0e15) as u64;
    Ok(Claims { user, session: session.transpose()?, expires, send: raw.send, topics: raw.topics })
}

/// For fuzzing: a token against a secret that is known to it.
#[doc(hidden)]
#[must_use]
pub(crate) fn verify_with_secret(secret: &[u8], token: &str) -> Option<Claims> {
    let tokens = Tokens {
        files: Current::fixed(vec![secret_key(secret).ok()?]),
        jwks: None,
        audience: Vec::new(),
        issuer: Vec::new(),
    };
    tokens.try_verify(token).ok()
}
