//! Tokens: JSON Web Tokens (RFC 7519) that are signed with HS256, RS256, ES256 or EdDSA.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::config::{Access, Secret};
use crate::grant::{Patterns, SKEW, SendPatterns};
use crate::identity::error::CredentialError;
use crate::identity::jwks::Jwks;
use crate::identity::key::{NO_KEY, VerificationKey, read_keys, secret_key};
use crate::message::{SessionId, UserId, taken_name};
use crate::reload::{Current, Loaded, SetupError, watch_files};

/// Longest token, in bytes.
const MAX_TOKEN: usize = 8 * 1024;

const NOTHING_KNOWN: &str = "this is neither a known API key nor a token (a JWT signed with HS256, RS256, ES256 or EdDSA), nor the \
     id of a session that is registered with `proof`";

/// The claims of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The user (`sub`).
    pub user: UserId,
    /// The session (`sid`).
    pub session: Option<SessionId>,
    /// When the token expires (`exp`), in Unix milliseconds.
    pub expires_at: u64,
    /// Where the token may send (`send`).
    pub send: Option<SendPatterns>,
    /// Which topics the token may read (`topics`).
    pub topics: Option<Patterns>,
    /// Of which topics the token may see who reads them (`presence`).
    pub presence: Option<Patterns>,
}

#[derive(Debug, Deserialize)]
struct RawClaims {
    sub: Option<String>,
    sid: Option<String>,
    exp: f64,
    send: Option<SendPatterns>,
    topics: Option<Patterns>,
    presence: Option<Patterns>,
}

/// Verifies tokens with the keys of files, of the environment and of a JWK set.
#[derive(Debug)]
pub(crate) struct TokenVerifier {
    /// The keys of files and of the environment.
    files: Current<Vec<VerificationKey>>,
    /// Shared by the keys before and after a reload.
    jwks: Option<Arc<Jwks>>,
    audience: Vec<String>,
    issuer: Vec<String>,
}

/// Why a token failed with the keys that are known now.
#[derive(Debug, PartialEq, Eq)]
enum VerifyError {
    /// None of the known keys can have signed it.
    UnknownKey,
    /// A known key should have signed it, and did not.
    WrongSignature,
    /// It is no token that this server could verify.
    NoToken(String),
    /// The signature is right, but something else is wrong.
    Invalid(String),
}

impl TokenVerifier {
    /// Reads the keys and watches their files. `None` if no keys are configured. The JWK set of `previous` is used on if its
    /// settings are the same: its keys stay known while it cannot be fetched.
    pub(super) fn new(
        access: &Access,
        previous: Option<(&Access, &Self)>,
    ) -> Result<Option<Self>, SetupError> {
        let secret = access.secrets.token.clone();
        if access.token_key_file.is_empty() && secret.is_none() && access.token_jwks_url.is_none() {
            return Ok(None);
        }
        let load = move |paths: &[PathBuf]| load_keys(secret.as_ref(), paths);
        let files = watch_files("the keys of tokens", access.token_key_file.clone(), load)?;
        if access.token_jwks_url.is_some() && access.token_audience.is_empty() {
            tracing::warn!(
                "without --token-audience, this server also accepts the tokens that the issuer of --token-jwks-url signs \
                 for others"
            );
        }
        let settings = |access: &Access| {
            (access.token_jwks_url.clone(), access.token_jwks_refresh, access.token_jwks_max_age)
        };
        let jwks = match (previous, &access.token_jwks_url) {
            (Some((before, tokens)), _) if settings(before) == settings(access) => tokens.jwks.clone(),
            (_, Some(url)) => {
                Some(Jwks::watch(url, access.token_jwks_refresh, access.token_jwks_max_age)?.into())
            }
            (_, None) => None,
        };
        let (audience, issuer) = (access.token_audience.clone(), access.token_issuer.clone());
        Ok(Some(Self { files, jwks, audience, issuer }))
    }

    /// Whether this has the shape of a token.
    #[must_use]
    pub(crate) fn looks_like_token(text: &str) -> bool {
        text.split('.').count() == 3
    }

    /// Verifies the signature, the times, the audience and the issuer of a token.
    ///
    /// # Errors
    /// [`CredentialError::Unknown`] and [`CredentialError::Invalid`] say what is wrong with the token.
    /// [`CredentialError::Unavailable`] means that the JWK set was never fetched yet, or too long ago.
    pub(crate) async fn verify(&self, token: &str) -> Result<Claims, CredentialError> {
        let mut verified = self.verify_with_known_keys(token);
        if let (Err(VerifyError::UnknownKey), Some(jwks)) = (&verified, &self.jwks) {
            // The issuer may have a new key.
            jwks.refresh().await;
            verified = self.verify_with_known_keys(token);
            if verified == Err(VerifyError::UnknownKey) && jwks.keys().is_none() {
                return Err(CredentialError::Unavailable(
                    "the keys of tokens cannot be fetched now (--token-jwks-url); try again in a moment"
                        .to_owned(),
                ));
            }
        }
        verified.map_err(|error| match error {
            VerifyError::UnknownKey => {
                CredentialError::Unknown("no key that is known here signed the token".to_owned())
            }
            VerifyError::WrongSignature => {
                CredentialError::Unknown("the token's signature is wrong".to_owned())
            }
            VerifyError::NoToken(reason) => CredentialError::Unknown(reason),
            VerifyError::Invalid(reason) => CredentialError::Invalid(reason),
        })
    }

    fn verify_with_known_keys(&self, token: &str) -> Result<Claims, VerifyError> {
        if token.len() > MAX_TOKEN {
            let text = format!("the token is {} bytes long; at most {MAX_TOKEN} are allowed", token.len());
            return Err(VerifyError::NoToken(text));
        }
        let header =
            jsonwebtoken::decode_header(token).map_err(|_| VerifyError::NoToken(NOTHING_KNOWN.to_owned()))?;
        if has_critical_extensions(token) {
            let text =
                "the token's header has `crit`, but this server knows no extensions that it could name";
            return Err(VerifyError::NoToken(text.to_owned()));
        }
        let (files, jwks) = (self.files.get(), self.jwks.as_ref().and_then(|jwks| jwks.keys()));
        let keys = files.iter().chain(jwks.iter().flat_map(|keys| keys.iter()));
        let usable: Vec<&VerificationKey> = keys.filter(|key| key.algorithm == header.alg).collect();
        let kid = header.kid.as_deref();
        let is_known = kid.is_some_and(|kid| usable.iter().any(|key| key.kid.as_deref() == Some(kid)));
        // A known `kid` selects its key. Keys of files have no id; any other `kid` may mean them.
        let selected = kid.filter(|_| is_known);
        let mut result = Err(VerifyError::UnknownKey);
        for key in usable.iter().filter(|key| kid.is_none() || key.kid.as_deref() == selected) {
            result = self.verify_with(key, token);
            if result != Err(VerifyError::WrongSignature) {
                return result;
            }
        }
        // The JWK set may hold the key of this id by now.
        if kid.is_some() && !is_known && self.jwks.is_some() {
            return Err(VerifyError::UnknownKey);
        }
        result
    }

    fn verify_with(&self, key: &VerificationKey, token: &str) -> Result<Claims, VerifyError> {
        match jsonwebtoken::decode::<RawClaims>(token, &key.key, &self.validation(key.algorithm)) {
            Ok(token) => claims(token.claims).map_err(VerifyError::Invalid),
            Err(error) => Err(verify_error(error.kind())),
        }
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

type LoadedKeys = Loaded<Vec<VerificationKey>, SetupError>;

fn load_keys(secret: Option<&Secret>, paths: &[PathBuf]) -> Result<LoadedKeys, SetupError> {
    let (mut keys, mut emptied) = (Vec::new(), None);
    if let Some(Secret(secret)) = secret {
        let invalid = |reason| SetupError(format!("X0_MSG_TOKEN_SECRET {reason}"));
        keys.push(secret_key(secret.as_bytes()).map_err(invalid)?);
    }
    for path in paths {
        let read = read_keys(path)?;
        if read.is_empty() {
            emptied = Some(SetupError(format!("--token-key-file {}: {NO_KEY}", path.display())));
        }
        keys.extend(read);
    }
    Ok(match emptied {
        Some(error) => Loaded::Emptied(keys, error),
        None => Loaded::Complete(keys),
    })
}

/// Whether the header of a token names extensions that its reader must know (`crit`, RFC 7515 section 4.1.11). Every
/// value of `crit` counts: an invalid one makes the token invalid too.
fn has_critical_extensions(token: &str) -> bool {
    let header = token.split('.').next().and_then(|header| URL_SAFE_NO_PAD.decode(header).ok());
    let header = header.and_then(|json| serde_json::from_slice::<HashMap<String, IgnoredAny>>(&json).ok());
    header.is_none_or(|header| header.contains_key("crit"))
}

fn verify_error(error: &ErrorKind) -> VerifyError {
    VerifyError::Invalid(match error {
        ErrorKind::ExpiredSignature => "the token has expired (`exp`); get a fresh one".to_owned(),
        ErrorKind::ImmatureSignature => "the token is not valid yet (`nbf`)".to_owned(),
        ErrorKind::InvalidAudience => "the token is for another audience (`aud`)".to_owned(),
        ErrorKind::InvalidIssuer => "the token is from another issuer (`iss`)".to_owned(),
        ErrorKind::MissingRequiredClaim(claim) => format!("the token has no claim `{claim}`"),
        ErrorKind::InvalidClaimFormat(claim) => format!("the token's claim `{claim}` is invalid"),
        ErrorKind::Json(error) => format!("the token's claims are invalid: {error}"),
        _ => return VerifyError::WrongSignature,
    })
}

fn claims(raw: RawClaims) -> Result<Claims, String> {
    let user = raw.sub.as_deref().ok_or("the token has no claim `sub`, which names its user")?;
    let user = taken_name(user, UserId::new).map_err(|reason| format!("the token's claim `sub` {reason}"))?;
    let session = raw.sid.as_deref().map(|sid| {
        taken_name(sid, SessionId::new).map_err(|reason| format!("the token's claim `sid` {reason}"))
    });
    // Whole milliseconds, within the integers of 64 bits and of JavaScript.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let expires_at = (raw.exp * 1000.0).clamp(0.0, 9.0e15) as u64;
    let RawClaims { send, topics, presence, .. } = raw;
    Ok(Claims { user, session: session.transpose()?, expires_at, send, topics, presence })
}

/// Verifies a token with one secret, for fuzzing.
#[must_use]
pub(crate) fn verify_with_secret(secret: &[u8], token: &str) -> Option<Claims> {
    let files = Current::fixed(vec![secret_key(secret).ok()?]);
    let verifier = TokenVerifier { files, jwks: None, audience: Vec::new(), issuer: Vec::new() };
    verifier.verify_with_known_keys(token).ok()
}

#[cfg(test)]
mod tests;
