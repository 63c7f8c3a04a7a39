//! Keys that verify and sign tokens, and their formats: PEM, JWK sets and secrets.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::{Deserialize, Serialize};

use crate::reload::{SetupError, read_file};

/// Shortest secret, in bytes: the length of the hash of HS256 (RFC 7518 section 3.2).
const MIN_SECRET: usize = 32;

/// What is said of a file or a set without keys.
pub(super) const NO_KEY: &str = "holds no usable key (RS256, ES256 with P-256, EdDSA with Ed25519)";

/// A key that verifies tokens. It has one algorithm, so that a token cannot choose another one for it.
#[derive(Debug, Clone)]
pub(super) struct VerificationKey {
    /// The id of the key; only keys of JWK sets have one.
    pub(super) kid: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// Keys that are shared with the task that fetches them.
pub(super) type KeySet = Arc<Vec<VerificationKey>>;

/// The key of a secret, without white space around it. An error says what is wrong with the secret, without its holder.
pub(super) fn secret_key(bytes: &[u8]) -> Result<VerificationKey, String> {
    let secret = bytes.trim_ascii();
    if let Some(what) = looks_public(secret) {
        return Err(format!(
            "{what}; everyone who knows a secret can sign tokens with it. A public key belongs into a file as PEM or JWK. \
             `openssl rand -hex 32` makes a secret"
        ));
    }
    if secret.len() < MIN_SECRET {
        return Err(format!(
            "is a secret of {} bytes; HS256 needs at least {MIN_SECRET} (`openssl rand -hex 32` makes one)",
            secret.len()
        ));
    }
    Ok(VerificationKey { kid: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) })
}

/// Says what public thing this looks like. A public key that is used as a secret would let everyone sign.
fn looks_public(secret: &[u8]) -> Option<&'static str> {
    let Ok(text) = std::str::from_utf8(secret) else { return Some("is not text") };
    if text.starts_with(['{', '[', '\u{feff}']) {
        return Some("looks like JSON");
    }
    if text.contains("-----BEGIN ") {
        return Some("looks like PEM");
    }
    if text.starts_with("ssh-") || text.starts_with("ecdsa-") {
        return Some("looks like an SSH key");
    }
    // DER: a sequence with its length in front (X.690 section 8.1).
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

/// Reads the keys in a file: PEM, a JWK set, or a secret. An empty file has none.
pub(super) fn read_keys(path: &Path) -> Result<Vec<VerificationKey>, SetupError> {
    let invalid = |reason: String| SetupError(format!("--token-key-file {}: {reason}", path.display()));
    let bytes = read_file(path).map_err(|error| invalid(error.to_string()))?;
    parse_keys(&bytes).map_err(invalid)
}

fn parse_keys(bytes: &[u8]) -> Result<Vec<VerificationKey>, String> {
    let text = std::str::from_utf8(bytes).unwrap_or_default().trim_start_matches('\u{feff}').trim_start();
    if text.starts_with(['{', '[']) {
        return parse_jwks(text, true);
    }
    if bytes.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let key = if text.contains("-----BEGIN ") { parse_pem(text) } else { secret_key(bytes) };
    key.map(|key| vec![key])
}

fn parse_pem(text: &str) -> Result<VerificationKey, String> {
    if text.contains("PRIVATE KEY-----") {
        return Err(
            "holds a private key; only the public one belongs here (`openssl pkey -in … -pubout`)".to_owned()
        );
    }
    let pem = text.as_bytes();
    let keys = [
        (Algorithm::RS256, DecodingKey::from_rsa_pem(pem)),
        (Algorithm::ES256, DecodingKey::from_ec_pem(pem)),
        (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem)),
    ];
    for (algorithm, key) in keys {
        let Ok(key) = key else { continue };
        // An uncompressed point of P-256 has one byte and twice 32.
        if algorithm == Algorithm::ES256 && length(&key) != 65 {
            return Err("holds an elliptic curve key of another curve than P-256 (ES256)".to_owned());
        }
        return Ok(VerificationKey { kid: None, algorithm, key });
    }
    Err("holds no public key of RSA, P-256 or Ed25519".to_owned())
}

/// Parses a JWK set, a list of JWKs or a single JWK (RFC 7517). Secrets are keys only with `with_secrets`.
/// The set may hold no key that verifies tokens.
pub(super) fn parse_jwks(text: &str, with_secrets: bool) -> Result<Vec<VerificationKey>, String> {
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
        let Some(algorithm) = jwk_algorithm(&jwk, with_secrets) else { continue };
        let Ok(key) = DecodingKey::from_jwk(&jwk) else { continue };
        if algorithm == Algorithm::HS256 && length(&key) < MIN_SECRET {
            return Err(format!("holds a secret of fewer than {MIN_SECRET} bytes"));
        }
        keys.push(VerificationKey { kid: jwk.common.key_id, algorithm, key });
    }
    Ok(keys)
}

/// The algorithm of a JWK; `None` for a key that verifies no token here.
fn jwk_algorithm(jwk: &Jwk, with_secrets: bool) -> Option<Algorithm> {
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        AlgorithmParameters::OctetKey(_) if with_secrets => Algorithm::HS256,
        _ => return None,
    };
    let named = match jwk.common.key_algorithm {
        None => algorithm,
        Some(KeyAlgorithm::HS256) => Algorithm::HS256,
        Some(KeyAlgorithm::RS256) => Algorithm::RS256,
        Some(KeyAlgorithm::ES256) => Algorithm::ES256,
        Some(KeyAlgorithm::EdDSA) => Algorithm::EdDSA,
        Some(_) => return None,
    };
    (named == algorithm).then_some(algorithm)
}

fn length(key: &DecodingKey) -> usize {
    key.try_get_as_bytes().map_or(0, <[u8]>::len)
}

/// Signs claims with a private key (PEM) or a secret, for development and tests.
///
/// # Errors
/// The bytes are no such key.
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
        (Algorithm::HS256, EncodingKey::from_secret(key.trim_ascii()))
    };
    let header = Header { kid, ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &key).map_err(|error| format!("cannot sign with it: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_a_secret_is_ignored() {
        let (bare, padded) = ("0123456789abcdef0123456789abcdef", "\n 0123456789abcdef0123456789abcdef\r\n");
        let bytes =
            |secret: &str| secret_key(secret.as_bytes()).unwrap().key.try_get_as_bytes().unwrap().to_vec();
        assert_eq!(bytes(padded), bytes(bare));
        let claims = serde_json::json!({ "sub": "ann" });
        assert_eq!(sign(padded.as_bytes(), None, &claims), sign(bare.as_bytes(), None, &claims));
        assert!(secret_key(format!("x{}", " ".repeat(MIN_SECRET)).as_bytes()).is_err(), "it does not count");
    }

    #[test]
    fn a_public_key_is_no_secret() {
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
            let reason = secret_key(public).unwrap_err();
            assert!(reason.contains(why), "{reason}");
        }
        for secret in
            ["0123456789abcdef0123456789abcdef", "MIIB begins a secret that happens to look like base64"]
        {
            secret_key(secret.as_bytes()).unwrap();
        }
    }

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const SECRET_JWK: &str = r#"{"kty":"oct","kid":"s","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}"#;
    const ED25519_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
                               MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                               -----END PUBLIC KEY-----\n";

    fn ed25519(more: &str) -> String {
        format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"{more}}}"#)
    }

    #[test]
    fn a_file_is_recognized_by_its_content() {
        let algorithms = |text: &str| -> Vec<Algorithm> {
            parse_keys(text.as_bytes()).unwrap().iter().map(|key| key.algorithm).collect()
        };
        assert_eq!(algorithms(SECRET), [Algorithm::HS256]);
        assert_eq!(algorithms(ED25519_PEM), [Algorithm::EdDSA]);
        assert_eq!(algorithms(&ed25519("")), [Algorithm::EdDSA]);
        assert_eq!(
            algorithms(&format!("\u{feff} [{},{SECRET_JWK}]", ed25519(""))),
            [Algorithm::EdDSA, Algorithm::HS256]
        );
    }

    #[test]
    fn a_private_key_is_refused_where_a_public_one_belongs() {
        let private = ED25519_PEM.replace("PUBLIC", "PRIVATE");
        assert!(parse_keys(private.as_bytes()).unwrap_err().contains("holds a private key"));
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert!(parse_keys(b"too short\n").unwrap_err().contains("of 9 bytes"));
        let jwk = br#"{"kty":"oct","k":"c2hvcnQ"}"#;
        assert!(parse_keys(jwk).unwrap_err().contains("fewer than 32 bytes"));
    }

    #[test]
    fn keys_for_other_purposes_are_skipped() {
        let keys = |text: &str, with_secrets| match parse_jwks(text, with_secrets)?.len() {
            0 => Err(NO_KEY.to_owned()),
            n => Ok(n),
        };
        assert_eq!(
            keys(&format!(r#"{{"keys":[{}]}}"#, ed25519(r#","use":"sig","alg":"EdDSA""#)), false),
            Ok(1)
        );
        for skipped in [ed25519(r#","use":"enc""#), ed25519(r#","alg":"RS256""#), SECRET_JWK.to_owned()] {
            assert!(keys(&skipped, false).unwrap_err().contains("no usable key"), "{skipped}");
        }
        assert_eq!(keys(SECRET_JWK, true), Ok(1), "a secret of a file");
        assert!(keys("{\"keys\":", true).unwrap_err().contains("not a JWK set"));
    }

    #[test]
    fn a_secret_signs_what_it_verifies() {
        let token =
            sign(SECRET.as_bytes(), Some("id".to_owned()), &serde_json::json!({ "sub": "ann" })).unwrap();
        assert_eq!(jsonwebtoken::decode_header(&token).unwrap().kid.as_deref(), Some("id"));
        assert!(sign(b"too short", None, &()).is_err());
        assert!(sign(ED25519_PEM.as_bytes(), None, &()).unwrap_err().contains("no private key"));
    }
}
