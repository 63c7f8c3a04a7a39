//! Text that only the broker can read: encrypted and authenticated with a key that is derived from the store's secret.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Why a text is not decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecryptError {
    /// This store has not made it, or somebody has changed it.
    Foreign,
    /// Its time is over.
    Expired,
}

/// Encrypts and decrypts.
pub(crate) struct Cipher(RandomizedNonceKey);

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher")
    }
}

/// The length of the time at the beginning of the content.
const TIME: usize = size_of::<u64>();

impl Cipher {
    /// Derives the key from the store's secret.
    pub(crate) fn new(secret: &[u8; 16]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let key = hmac::sign(&root, b"replies");
        Self(RandomizedNonceKey::new(&AES_256_GCM_SIV, key.as_ref()).expect("the key has 256 bits"))
    }

    /// Encrypts some content, as base64url. It can be decrypted until `expires_at`.
    pub(crate) fn encrypt(&self, content: &[u8], expires_at: u64) -> String {
        let mut bytes = expires_at.to_be_bytes().to_vec();
        bytes.extend_from_slice(content);
        let nonce = self.0.seal_in_place_append_tag(Aad::empty(), &mut bytes).expect("the content is short");
        bytes.extend_from_slice(nonce.as_ref());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The content of a text that was encrypted.
    pub(crate) fn decrypt(&self, text: &str, now: u64) -> Result<Vec<u8>, DecryptError> {
        let (expires_at, content) = self.open(text).ok_or(DecryptError::Foreign)?;
        if expires_at <= now { Err(DecryptError::Expired) } else { Ok(content) }
    }

    fn open(&self, text: &str) -> Option<(u64, Vec<u8>)> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let nonce = bytes.split_off(bytes.len().checked_sub(NONCE_LEN)?);
        let nonce = Nonce::try_assume_unique_for_key(&nonce).ok()?;
        let opened = self.0.open_in_place(nonce, Aad::empty(), &mut bytes).ok()?;
        let (time, content) = opened.split_at_checked(TIME)?;
        Some((u64::from_be_bytes(time.try_into().ok()?), content.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encrypted_is_read_until_its_time_is_over() {
        let cipher = Cipher::new(&[1; 16]);
        for content in [&b""[..], b"x", &[7; 1000]] {
            let text = cipher.encrypt(content, 100);
            assert_eq!(Cipher::new(&[1; 16]).decrypt(&text, 99).unwrap(), content);
            assert_eq!(cipher.decrypt(&text, 100), Err(DecryptError::Expired));
            assert_ne!(cipher.encrypt(content, 100), text, "equal contents do not look equal");
        }
    }

    #[test]
    fn what_another_store_made_or_somebody_changed_is_not_read() {
        let cipher = Cipher::new(&[1; 16]);
        let text = cipher.encrypt(b"content", 100);
        assert_eq!(Cipher::new(&[2; 16]).decrypt(&text, 0), Err(DecryptError::Foreign));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(cipher.decrypt(&changed, 0), Err(DecryptError::Foreign), "{at}");
            assert_eq!(cipher.decrypt(&text[..at], 0), Err(DecryptError::Foreign), "{at}");
        }
        for other in ["", "A", "not base64!", &format!("{text}A"), &format!("{text}="), &"A".repeat(400)] {
            assert_eq!(cipher.decrypt(other, 0), Err(DecryptError::Foreign), "{other}");
        }
    }
}
