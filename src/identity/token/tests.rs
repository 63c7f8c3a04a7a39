//! Tests of tokens.

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
        VerifyError::Invalid(reason) | VerifyError::NoToken(reason) => reason,
        error => format!("{error:?}"),
    }
}

#[test]
fn a_valid_token_gives_its_claims() {
    let claims = json!({ "sid": "A", "exp": 4_000_000_000_u64, "send": ["topic:*"], "topics": ["news"] });
    let claims = verifier(&[(SECRET, None)]).verify_with_known_keys(&token(SECRET, None, claims)).unwrap();
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
    assert!(reason(&verifier, &token(SECRET, None, json!({ "exp": now() - SKEW - 5 }))).contains("`exp`"));
    assert!(reason(&verifier, &token(SECRET, None, json!({ "nbf": now() + SKEW + 60 }))).contains("`nbf`"));
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
    for (crit, is_refused) in
        [(None, false), (Some(json!(["exp"])), true), (Some(json!([])), true), (Some(json!(["b64"])), true)]
    {
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
