//! Tokens of the broker's `token` mode (HS256).
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// A token of the user and the session of this name, good for a day, which may do everything that a client may.
pub fn sign(secret: &[u8], name: &str) -> String {
    let day = std::time::SystemTime::now() + std::time::Duration::from_secs(86_400);
    let exp = day.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = format!(r#"{{"sub":"{name}","sid":"{name}","exp":{exp},"send":["*"],"topics":["*"]}}"#);
    let signed = format!("{}.{}", base64url(br#"{"alg":"HS256","typ":"JWT"}"#), base64url(claims.as_bytes()));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", base64url(&mac.finalize().into_bytes()))
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits =
            part.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
        for digit in 0..=part.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_has_no_padding() {
        let texts = ["", "f", "fo", "foo", "foob", "\u{fb}\u{ff}"].map(|text| base64url(text.as_bytes()));
        assert_eq!(texts, ["", "Zg", "Zm8", "Zm9v", "Zm9vYg", "w7vDvw"]);
    }
}
