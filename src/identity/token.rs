//! Tokens: JSON Web Tokens (RFC 7519), signed with HS256, RS256, ES256 or EdDSA.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::config::{Access, Secret};
use crate::identity::jwks::Jwks;
use crate::identity::pattern::{Patterns, SendPatterns};
use crate::identity::reload::{Current, watch_files};
use crate::identity::{SetupError, Unproven};
use crate::message::{SessionId, UserId};

/// Seconds that clocks may differ: a token is good that long before `nbf` and after `exp`.
pub const SKEW: u64 = 30;

/// Longest token, in bytes.
const LONGEST: usize = 8 * 1024;

/// Shortest secret, in bytes: as long as the hash of HS256 (RFC 7518 section 3.2).
const SHORTEST_SECRET: usize = 32;

/// A key that tokens are verified with, for one algorithm: so no token can choose another one for it.
#[derive(Debug, Clone)]
pub(super) struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
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
pub struct Tokens {
    files: Current<Vec<Key>>,
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
    pub fn is_one(text: &str) -> bool {
        text.split('.').count() == 3
    }

    /// Verifies a token: its signature, times, audience and issuer.
    ///
    /// # Errors
    /// [`Unproven`] says what is wrong with it.
    pub async fn verify(&self, token: &str) -> Result<Claims, Unproven> {
        const UNKNOWN: &str = "the token is signed with no key that is known here";
        match self.try_verify(token) {
            Ok(claims) => return Ok(claims),
            Err(Refused::Because(why)) => return Err(Unproven::Wrong(why)),
            Err(Refused::UnknownKey) => {}
        }
        let Some(jwks) = &self.jwks else { return Err(Unproven::Wrong(UNKNOWN.to_owned())) };
        // Keys are rotated: there may be a new one.
        jwks.ask().await;
        match self.try_verify(token) {
            Ok(claims) => Ok(claims),
            Err(Refused::Because(why)) => Err(Unproven::Wrong(why)),
            Err(Refused::UnknownKey) if jwks.keys().is_none() => Err(Unproven::Unavailable(
                "the keys of tokens cannot be fetched now (--token-jwks-url); try again in a moment"
                    .to_owned(),
            )),
            Err(Refused::UnknownKey) => Err(Unproven::Wrong(UNKNOWN.to_owned())),
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

fn secret_key(bytes: &[u8]) -> Result<Key, String> {
    let secret = bytes.trim_ascii_end();
    if let Some(what) = looks_public(secret) {
        return Err(format!(
            "{what}; with a secret that everybody knows, everybody could sign. A public key belongs into a file as PEM or \
             JWK, a secret is text like that of `openssl rand -hex 32`"
        ));
    }
    if secret.len() < SHORTEST_SECRET {
        return Err(format!(
            "is a secret of {} bytes; HS256 needs at least {SHORTEST_SECRET} (`openssl rand -hex 32` makes one)",
            secret.len()
        ));
    }
    Ok(Key { kid: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) })
}

/// What a secret must not be: something that is meant to be published, in whatever form keys are.
fn looks_public(secret: &[u8]) -> Option<&'static str> {
    let Ok(text) = std::str::from_utf8(secret) else { return Some("is not text") };
    if text.starts_with(['{', '[', '\u{feff}']) {
        return Some("looks like JSON");
    }
    if text.contains("-----BEGIN ") {
        return Some("looks like PEM");
    }
    if text.starts_with("ssh-") || text.starts_with("ecdsa-") {
        return Some("looks like a key of SSH");
    }
    // DER: a sequence that is as long as it says (X.690 section 8.1).
    let compact: String = text.chars().filter(|char| !char.is_whitespace() && *char != '=').collect();
    let decoded = STANDARD_NO_PAD.decode(&compact).or_else(|_| URL_SAFE_NO_PAD.decode(&compact)).ok()?;
    let is_der = match *decoded.as_slice() {
        [0x30, length @ ..=0x7f, ..] => decoded.len() == usize::from(length) + 2,
        [0x30, 0x81, length, ..] => decoded.len() == usize::from(length) + 3,
        [0x30, 0x82, high, low, ..] => decoded.len() == usize::from(u16::from_be_bytes([high, low])) + 4,
        _ => false,
    };
    is_der.then_some("looks like a public key without its PEM lines")
}

/// Reads the keys in a file: PEM, a JWK set, or a secret.
fn read_keys(path: &Path) -> Result<Vec<Key>, SetupError> {
    let told = |why: String| SetupError(format!("--token-key-file {}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| told(error.to_string()))?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim_start_matches('\u{feff}').trim_start();
    if text.starts_with(['{', '[']) {
        return read_jwks(text, true).map_err(told);
    }
    if text.contains("-----BEGIN ") {
        return read_pem(text).map(|key| vec![key]).map_err(told);
    }
    secret_key(&bytes).map(|key| vec![key]).map_err(told)
}

fn read_pem(text: &str) -> Result<Key, String> {
    if text.contains("PRIVATE KEY-----") {
        return Err(
            "holds a private key; only the public one belongs here (`openssl pkey -in … -pubout`)".to_owned()
        );
    }
    let pem = text.as_bytes();
    let made = [
        (Algorithm::RS256, DecodingKey::from_rsa_pem(pem)),
        (Algorithm::ES256, DecodingKey::from_ec_pem(pem)),
        (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem)),
    ];
    for (algorithm, key) in made {
        let Ok(key) = key else { continue };
        // An uncompressed point of P-256: one byte and twice 32.
        if algorithm == Algorithm::ES256 && key.try_get_as_bytes().map_or(0, <[u8]>::len) != 65 {
            return Err("holds an elliptic curve key of another curve than P-256 (ES256)".to_owned());
        }
        return Ok(Key { kid: None, algorithm, key });
    }
    Err("holds no public key of RSA, P-256 or Ed25519".to_owned())
}

/// Reads a JWK set or a single JWK (RFC 7517). Secrets only where they may be.
pub(super) fn read_jwks(text: &str, with_secrets: bool) -> Result<Vec<Key>, String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        Set(JwkSet),
        List(Vec<Jwk>),
        One(Box<Jwk>),
    }
    let jwks = match serde_json::from_str(text).map_err(|_| "is not a JWK set (RFC 7517)".to_owned())? {
        OneOrMore::Set(set) => set.keys,
        OneOrMore::List(keys) => keys,
        OneOrMore::One(jwk) => vec![*jwk],
    };
    let mut keys = Vec::new();
    for jwk in jwks {
        if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
            continue;
        }
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            AlgorithmParameters::OctetKey(_) if with_secrets => Algorithm::HS256,
            _ => continue,
        };
        let named = match jwk.common.key_algorithm {
            None => algorithm,
            Some(KeyAlgorithm::HS256) => Algorithm::HS256,
            Some(KeyAlgorithm::RS256) => Algorithm::RS256,
            Some(KeyAlgorithm::ES256) => Algorithm::ES256,
            Some(KeyAlgorithm::EdDSA) => Algorithm::EdDSA,
            Some(_) => continue,
        };
        if named != algorithm {
            continue;
        }
        let Ok(key) = DecodingKey::from_jwk(&jwk) else { continue };
        if algorithm == Algorithm::HS256 && key.try_get_as_bytes().map_or(0, <[u8]>::len) < SHORTEST_SECRET {
            return Err(format!("holds a secret of fewer than {SHORTEST_SECRET} bytes"));
        }
        keys.push(Key { kid: jwk.common.key_id, algorithm, key });
    }
    match keys.is_empty() {
        true => {
            Err("holds no key that can be used here (RS256, ES256 with P-256, EdDSA with Ed25519)".to_owned())
        }
        false => Ok(keys),
    }
}

/// Signs a token with the private key or the secret in a file. For development and tests.
///
/// # Errors
/// The file holds no such key.
pub fn sign(key: &[u8], kid: Option<String>, claims: &impl Serialize) -> Result<String, String> {
    let text = std::str::from_utf8(key).unwrap_or_default();
    let (algorithm, key) = if text.contains("-----BEGIN ") {
        let pem = text.as_bytes();
        let kinds = [
            (Algorithm::RS256, EncodingKey::from_rsa_pem(pem)),
            (Algorithm::ES256, EncodingKey::from_ec_pem(pem)),
            (Algorithm::EdDSA, EncodingKey::from_ed_pem(pem)),
        ];
        let mut usable = kinds.into_iter().filter_map(|(algorithm, key)| Some((algorithm, key.ok()?)));
        usable.next().ok_or("holds no private key of RSA, P-256 (PKCS #8) or Ed25519")?
    } else {
        secret_key(key)?;
        (Algorithm::HS256, EncodingKey::from_secret(key.trim_ascii_end()))
    };
    let header = Header { kid, ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &key).map_err(|error| format!("cannot sign with it: {error}"))
}

/// For fuzzing: a token against a secret that is known to it.
#[doc(hidden)]
#[must_use]
pub fn verify_with_secret(secret: &[u8], token: &str) -> Option<Claims> {
    let tokens = Tokens {
        files: Current::fixed(vec![secret_key(secret).ok()?]),
        jwks: None,
        audience: Vec::new(),
        issuer: Vec::new(),
    };
    tokens.try_verify(token).ok()
}

pub(super) type Keys = Arc<Vec<Key>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_no_secret() {
        let rsa = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA";
        let mut der = STANDARD_NO_PAD.decode(rsa).unwrap();
        der.resize(294, 7);
        let bare = STANDARD_NO_PAD.encode(&der);
        for (public, why) in [
            (bare.as_bytes(), "without its PEM"),
            (b"MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8AAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHw==", "without its PEM"),
            (der.as_slice(), "not text"),
            (b"[{\"kty\":\"RSA\",\"n\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAA\"}]", "JSON"),
            (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAA", "SSH"),
            (b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----", "PEM"),
        ] {
            let said = secret_key(public).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        for secret in
            ["0123456789abcdef0123456789abcdef", "MIIB is how some secrets begin, and why should they not"]
        {
            secret_key(secret.as_bytes()).unwrap();
        }
    }
}
