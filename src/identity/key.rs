//! Keys that tokens are verified with and signed with, and how they are read: PEM, JWK sets, secrets.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::{Deserialize, Serialize};

use crate::reload::SetupError;

/// Shortest secret, in bytes: as long as the hash of HS256 (RFC 7518 section 3.2).
const SHORTEST_SECRET: usize = 32;

/// A key that tokens are verified with, for one algorithm: so no token can choose another one for it.
#[derive(Debug, Clone)]
pub(super) struct VerificationKey {
    pub(super) kid: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// Keys that are shared with the task that fetches them.
pub(super) type KeySet = Arc<Vec<VerificationKey>>;

pub(super) fn secret_key(bytes: &[u8]) -> Result<VerificationKey, String> {
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
    Ok(VerificationKey { kid: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) })
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
pub(super) fn read_keys(path: &Path) -> Result<Vec<VerificationKey>, SetupError> {
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

fn read_pem(text: &str) -> Result<VerificationKey, String> {
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
        return Ok(VerificationKey { kid: None, algorithm, key });
    }
    Err("holds no public key of RSA, P-256 or Ed25519".to_owned())
}

/// Reads a JWK set or a single JWK (RFC 7517). Secrets only where they may be.
pub(super) fn read_jwks(text: &str, with_secrets: bool) -> Result<Vec<VerificationKey>, String> {
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
        keys.push(VerificationKey { kid: jwk.common.key_id, algorithm, key });
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
pub(crate) fn sign(key: &[u8], kid: Option<String>, claims: &impl Serialize) -> Result<String, String> {
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
