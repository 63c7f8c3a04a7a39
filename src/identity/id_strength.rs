//! Whether the id of a session can be a secret: how many random bits it can hold.

use std::collections::{BTreeMap, BTreeSet};

/// Random bits that the id of a session needs to be a proof.
const NEEDED: f64 = 128.0;

/// Most random bits of a UUID: its version and its variant are fixed.
const UUID_BITS: u32 = 122;

/// Why the id of a session can be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WeakId {
    /// It cannot be a bearer.
    #[error("has spaces or characters that are not ASCII, so it cannot be sent as a bearer")]
    NoBearer,
    /// It is a UUID, or a UUID is most of it.
    #[error("is a UUID, which has {UUID_BITS} random bits at most, or fewer: its neighbours may be known")]
    Uuid,
    /// It is too short.
    #[error("is too short for 128 random bits: it holds {0} at most")]
    Short(u32),
    /// It repeats or counts.
    #[error("repeats itself or counts, so it can be guessed")]
    Pattern,
}

/// Checks that an id can hold 128 random bits. Nobody can see whether it was really made at random: this finds mistakes.
///
/// # Errors
/// [`WeakId`] says why it cannot.
pub(crate) fn check_id_strength(id: &str) -> Result<(), WeakId> {
    if !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(WeakId::NoBearer);
    }
    let rest = without_uuids(id);
    let bits = bits(&rest);
    if bits < NEEDED {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 128")]
        return Err(if rest.len() < id.len() { WeakId::Uuid } else { WeakId::Short(bits as u32) });
    }
    match few_distinct(&rest) || counts(&rest) || repeats(&rest) {
        true => Err(WeakId::Pattern),
        false => Ok(()),
    }
}

/// The id without the UUIDs in it.
fn without_uuids(id: &str) -> Vec<u8> {
    let bytes = id.as_bytes();
    let (mut rest, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        if bytes[at..].get(..UUID_LENGTH).is_some_and(is_uuid) {
            at += UUID_LENGTH;
        } else {
            rest.push(bytes[at]);
            at += 1;
        }
    }
    rest
}

const UUID_LENGTH: usize = 36;

fn is_uuid(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// The most random bits that this text can hold, by its alphabet and its length.
fn bits(text: &[u8]) -> f64 {
    let has = |test: fn(&u8) -> bool| text.iter().any(test);
    let (lower, upper, digit) =
        (has(u8::is_ascii_lowercase), has(u8::is_ascii_uppercase), has(u8::is_ascii_digit));
    let hex = text.iter().filter(|byte| byte.is_ascii_alphanumeric()).all(u8::is_ascii_hexdigit);
    // In base64url, `-` and `_` are digits. Elsewhere they separate. Of random ids of 22 characters, one in 47,000 has letters
    // of one case only. It is refused, since it looks like words.
    let is_base64 = lower && upper && !hex;
    let counted = text.iter().filter(|byte| {
        byte.is_ascii_alphanumeric() || is_base64 && matches!(byte, b'-' | b'_' | b'+' | b'/')
    });
    let of_each = match (hex, is_base64) {
        (true, _) if !lower && !upper => 10_f64.log2(),
        (true, _) => 4.0,
        (_, true) => 6.0,
        // As base32.
        _ if digit => 5.0,
        _ => 26_f64.log2(),
    };
    of_each * f64::from(u32::try_from(counted.count()).unwrap_or(u32::MAX))
}

/// Whether there are fewer characters than a random id has: one in a thousand million has so few.
fn few_distinct(bytes: &[u8]) -> bool {
    let distinct = bytes.iter().collect::<BTreeSet<_>>().len();
    let decimal = bytes.iter().all(u8::is_ascii_digit);
    distinct < if decimal { 6 } else { 7 }
}

/// Whether most characters are the one before them plus the same number, as in `aaaa` and `0123`.
fn counts(bytes: &[u8]) -> bool {
    let mut steps = BTreeMap::<i16, usize>::new();
    for pair in bytes.windows(2) {
        *steps.entry(i16::from(pair[1]) - i16::from(pair[0])).or_default() += 1;
    }
    steps.values().any(|count| 2 * count > bytes.len())
}

/// Whether most of it is a part of it again.
fn repeats(bytes: &[u8]) -> bool {
    (1..=bytes.len() / 2).any(|period| {
        let again = bytes.iter().zip(&bytes[period..]).filter(|(one, other)| one == other).count();
        4 * again > 3 * (bytes.len() - period)
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn random<const BYTES: usize>() -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes).unwrap();
        bytes
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn random_ids_of_128_bits_are_strong() {
        for _ in 0..1_000 {
            let bytes = random::<16>();
            let decimal = format!("{:039}", u128::from_be_bytes(bytes));
            for id in [hex(&bytes), hex(&bytes).to_uppercase(), decimal, format!("s-{}", hex(&bytes))] {
                assert_eq!(check_id_strength(&id), Ok(()), "{id}");
            }
            let base64 = URL_SAFE_NO_PAD.encode(bytes);
            let has = |test: fn(&u8) -> bool| base64.as_bytes().iter().any(test);
            let is_mixed = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
            assert_eq!(check_id_strength(&base64).is_ok(), is_mixed, "{base64}");
        }
    }

    #[test]
    fn a_uuid_has_too_few_random_bits() {
        for id in [
            "0a34cb20-5d1b-11ef-9d3a-0242ac120002",
            "7D5F1C62-9B0E-4A57-8E43-2C1F6A90B7D8",
            "urn:uuid:7d5f1c62-9b0e-4a57-8e43-2c1f6a90b7d8",
            "session-7d5f1c62-9b0e-4a57-8e43-2c1f6a90b7d8",
        ] {
            assert_eq!(check_id_strength(id), Err(WeakId::Uuid), "{id}");
        }
        let salted = format!("7d5f1c62-9b0e-4a57-8e43-2c1f6a90b7d8-{}", hex(&random::<16>()));
        assert_eq!(check_id_strength(&salted), Ok(()));
    }

    #[test]
    fn a_short_id_is_weak() {
        for (id, bits) in [
            ("A", 4),
            ("ann@example.org", 61),
            ("9f86d081884c7d659a2feaa0c55ad01", 124),
            ("98a6b1c0eef94f0f.9bd1.4b4c", 96),
            ("pJ4kX0vQmZ8rT1sW3yB5n", 126),
            ("20261126143337000123456789012345678901", 126),
            ("____________________________________________-A", 4),
        ] {
            assert_eq!(check_id_strength(id), Err(WeakId::Short(bits)), "{id}");
        }
    }

    #[test]
    fn an_id_that_no_header_carries_is_no_proof() {
        for id in [
            "5f3c9a1be07d42886c0e9b7d13fa2465 é",
            "5f3c9a1be07d42886c0e9b7d13fa246 5",
            "5f3c9a1be07d42886c0e9b7d13fa2465é",
        ] {
            assert_eq!(check_id_strength(id), Err(WeakId::NoBearer), "{id}");
        }
    }

    #[test]
    fn an_id_with_a_pattern_is_weak() {
        for id in [
            "000000000000000000000000000000000000000",
            "0000000000000000000000000000002a",
            "0123456789abcdef0123456789abcdef",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "ABCDEFGHIJKLMNOPQRSTUVWXabcdefgh",
            "zyxwvutsrqponmlkjihgfedcba9876543210",
            "4f9a1c4f9a1c4f9a1c4f9a1c4f9a1c4f9a1c",
            "s3cret-Is3cret-Is3cret-Is3cret-I",
            "111111111111111111111111111111111111111111",
        ] {
            assert_eq!(check_id_strength(id), Err(WeakId::Pattern), "{id}");
        }
    }
}
