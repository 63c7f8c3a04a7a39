//! Tokens: JSON Web Tokens (RFC 7519) that are signed with HS256, RS256, ES256 or EdDSA.

use std::collections::HashMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::config::{Access, Secret};
use crate::grant::{Patterns, SKEW, SendPatterns};
use crate::identity::jwks::Jwks;
use crate::identity::key::{NO_KEY, VerificationKey, read_keys, secret_key};
use crate::message::{SessionId, UserId, taken_name};
use crate::reload::{Current, Loaded, SetupError, watch_files};

/// Why a token or an API key was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialError {
    /// It is invalid. The text says why.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be checked now.
    #[error("{0}")]
    Unavailable(String),
}

/// Longest token, in bytes.
const MAX_TOKEN: usize = 8 * 1024;

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
}

#[derive(Debug, Deserialize)]
struct RawClaims {
    sub: Option<String>,
    sid: Option<String>,
    exp: f64,
    send: Option<SendPatterns>,
    topics: Option<Patterns>,
}

/// Verifies tokens with the keys of files, of the environment and of a JWK set.
#[derive(Debug)]
pub(crate) struct TokenVerifier {
    /// The keys of files and of the environment.
    files: Current<Vec<VerificationKey>>,
    jwks: Option<Jwks>,
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
    /// The signature is right, but something else is wrong.
    Invalid(String),
}

impl TokenVerifier {
    /// Reads the keys and watches their files. `None` if no keys are configured.
    pub(super) fn new(access: &Access) -> Result<Option<Self>, SetupError> {
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
        let jwks = access.token_jwks_url.as_deref();
        let jwks = jwks
            .map(|url| Jwks::watch(url, access.token_jwks_refresh, access.token_jwks_max_age))
            .transpose()?;
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
    /// [`CredentialError::Invalid`] says what is wrong with the token. [`CredentialError::Unavailable`] means that the
    /// JWK set was never fetched yet, or too long ago.
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
        verified.map_err(|error| {
            CredentialError::Invalid(match error {
                VerifyError::UnknownKey => "no key that is known here signed the token".to_owned(),
                VerifyError::WrongSignature => "the token's signature is wrong".to_owned(),
                VerifyError::Invalid(reason) => reason,
            })
        })
    }

    fn verify_with_known_keys(&self, token: &str) -> Result<Claims, VerifyError> {
        if token.len() > MAX_TOKEN {
            let text = format!("the token is {} bytes long; at most {MAX_TOKEN} are allowed", token.len());
            return Err(VerifyError::Invalid(text));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| {
            let text = "this is neither a known API key nor a token (a JWT signed with HS256, RS256, ES256 or EdDSA)";
            VerifyError::Invalid(text.to_owned())
        })?;
        if has_critical_extensions(token) {
            let text =
                "the token's header has `crit`, but this server knows no extensions that it could name";
            return Err(VerifyError::Invalid(text.to_owned()));
        }
        let (files, jwks) = (self.files.get(), self.jwks.as_ref().and_then(Jwks::keys));
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
    let user = raw.sub.ok_or("the token has no claim `sub`, which names its user")?;
    let user =
        taken_name(&user, UserId::new).map_err(|reason| format!("the token's claim `sub` {reason}"))?;
    let session = raw.sid.map(|sid| {
        taken_name(&sid, SessionId::new).map_err(|reason| format!("the token's claim `sid` {reason}"))
    });
    // Whole milliseconds, within the integers of 64 bits and of JavaScript.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let expires_at = (raw.exp * 1000.0).clamp(0.0, 9.0e15) as u64;
    Ok(Claims { user, session: session.transpose()?, expires_at, send: raw.send, topics: raw.topics })
}

/// Verifies a token with one secret, for fuzzing.
#[must_use]
pub(crate) fn verify_with_secret(secret: &[u8], token: &str) -> Option<Claims> {
    let files = Current::fixed(vec![secret_key(secret).ok()?]);
    let verifier = TokenVerifier { files, jwks: None, audience: Vec::new(), issuer: Vec::new() };
    verifier.verify_with_known_keys(token).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::clock::Clock;
    use crate::identity::key::sign;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const OTHER: &[u8] = b"fedcba9876543210fedcba9876543210";

    /// A verifier with these secrets; each has the id that stands beside it.
    fn verifier(secrets: &[(&[u8], Option<&str>)]) -> TokenVerifier {
        let key = |(secret, kid): &(&[u8], Option<&str>)| {
            let kid = kid.map(str::to_owned);
            VerificationKey { kid, ..secret_key(secret).unwrap() }
        };
        let files = Current::fixed(secrets.iter().map(key).collect());
        TokenVerifier { files, jwks: None, audience: Vec::new(), issuer: Vec::new() }
    }

    fn now() -> u64 {
        Clock::Wall.now() / 1000
    }

    /// A token of ann's for another hour, with these claims besides.
    fn token(secret: &[u8], kid: Option<&str>, claims: Value) -> String {
        let Value::Object(claims) = claims else { panic!("claims are an object") };
        let mut all = json!({ "sub": "ann", "exp": now() + 3600 });
        all.as_object_mut().unwrap().extend(claims);
        sign(secret, kid.map(str::to_owned), &all).unwrap()
    }

    fn reason(verifier: &TokenVerifier, token: &str) -> String {
        match verifier.verify_with_known_keys(token).unwrap_err() {
            VerifyError::Invalid(reason) => reason,
            error => format!("{error:?}"),
        }
    }

    #[test]
    fn a_valid_token_gives_its_claims() {
        let claims = json!({ "sid": "A", "exp": 4_000_000_000_u64, "send": ["topic:*"], "topics": ["news"] });
        let claims =
            verifier(&[(SECRET, None)]).verify_with_known_keys(&token(SECRET, None, claims)).unwrap();
        assert_eq!((claims.user.as_str(), claims.expires_at), ("ann", 4_000_000_000_000));
        assert_eq!(claims.session, Some(SessionId::new("A").unwrap()));
        assert!(claims.send.is_some() && claims.topics.unwrap().allow("news"));
    }

    #[test]
    fn times_are_checked_with_some_skew() {
        let verifier = verifier(&[(SECRET, None)]);
        let verify = |claims| verifier.verify_with_known_keys(&token(SECRET, None, claims));
        verify(json!({ "exp": now() - SKEW + 5 })).unwrap();
        verify(json!({ "nbf": now() + SKEW - 5 })).unwrap();
        assert!(
            reason(&verifier, &token(SECRET, None, json!({ "exp": now() - SKEW - 5 }))).contains("`exp`")
        );
        assert!(
            reason(&verifier, &token(SECRET, None, json!({ "nbf": now() + SKEW + 60 }))).contains("`nbf`")
        );
    }

    #[test]
    fn invalid_claims_are_named() {
        let verifier = verifier(&[(SECRET, None)]);
        for (claims, name) in [
            (json!({ "sub": null }), "`sub`"),
            (json!({ "sub": "" }), "`sub` must not be empty"),
            (json!({ "sid": "a\nb" }), "`sid`"),
            (json!({ "sub": "h-BwcHBwcHBwcHBwcHBwcHBw" }), "`sub` must not have the shape of a handle"),
            (json!({ "sid": "h-BwcHBwcHBwcHBwcHBwcHBw" }), "`sid` must not have the shape of a handle"),
            (json!({ "send": ["news"] }), "begin with user:"),
            (json!({ "exp": "soon" }), "expected f64"),
        ] {
            let reason = reason(&verifier, &token(SECRET, None, claims.clone()));
            assert!(reason.contains(name), "{claims}: {reason}");
        }
    }

    #[test]
    fn audience_and_issuer_must_be_among_those_that_are_set() {
        let mut verifier = verifier(&[(SECRET, None)]);
        verifier.audience = vec!["x0-msg".to_owned(), "other".to_owned()];
        verifier.issuer = vec!["login".to_owned()];
        let token = |aud: &str, iss: &str| token(SECRET, None, json!({ "aud": aud, "iss": iss }));
        verifier.verify_with_known_keys(&token("other", "login")).unwrap();
        assert!(reason(&verifier, &token("shop", "login")).contains("`aud`"));
        assert!(reason(&verifier, &token("x0-msg", "nobody")).contains("`iss`"));
    }

    #[test]
    fn a_key_id_selects_its_key_and_no_other() {
        let verifier = verifier(&[(SECRET, Some("a")), (OTHER, Some("b"))]);
        let verify = |secret, kid| verifier.verify_with_known_keys(&token(secret, kid, json!({})));
        verify(SECRET, Some("a")).unwrap();
        verify(OTHER, None).unwrap();
        assert_eq!(verify(OTHER, Some("a")), Err(VerifyError::WrongSignature));
        assert_eq!(verify(SECRET, Some("c")), Err(VerifyError::UnknownKey));
    }

    #[test]
    fn a_key_without_an_id_accepts_any_id() {
        let verifier = verifier(&[(SECRET, None)]);
        verifier.verify_with_known_keys(&token(SECRET, Some("any"), json!({}))).unwrap();
        let other = verifier.verify_with_known_keys(&token(OTHER, Some("any"), json!({})));
        assert_eq!(other, Err(VerifyError::WrongSignature));
    }

    #[test]
    fn a_token_chooses_no_algorithm_for_a_key() {
        let verifier = verifier(&[(SECRET, None)]);
        let valid = token(SECRET, None, json!({}));
        let (_, rest) = valid.split_once('.').unwrap();
        // {"alg":"none"} and {"alg":"RS256"}
        for header in ["eyJhbGciOiJub25lIn0", "eyJhbGciOiJSUzI1NiJ9"] {
            verifier.verify_with_known_keys(&format!("{header}.{rest}")).unwrap_err();
        }
    }

    #[test]
    fn critical_extensions_are_refused() {
        let verifier = verifier(&[(SECRET, None)]);
        let claims = json!({ "sub": "ann", "exp": now() + 60 });
        for (crit, is_refused) in [
            (None, false),
            (Some(json!(["exp"])), true),
            (Some(json!([])), true),
            (Some(json!(["b64"])), true),
        ] {
            let mut header = json!({ "alg": "HS256", "typ": "JWT" });
            header.as_object_mut().unwrap().extend(crit.map(|crit| ("crit".to_owned(), crit)));
            let signed = [&header, &claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
            let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
            let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).unwrap();
            let token = format!("{signed}.{signature}");
            match is_refused {
                true => assert!(reason(&verifier, &token).contains("`crit`"), "{header}"),
                false => assert!(verifier.verify_with_known_keys(&token).is_ok(), "{header}"),
            }
        }
        let null = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","crit":null}"#);
        assert!(has_critical_extensions(&format!("{null}.e30.")));
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let verifier = verifier(&[(SECRET, None)]);
        for text in ["", "hello", "a.b.c", &"x".repeat(100)] {
            assert!(reason(&verifier, text).contains("neither a known API key nor a token"), "{text}");
        }
        assert!(reason(&verifier, &"x".repeat(MAX_TOKEN + 1)).contains("at most 8192"));
    }
}
