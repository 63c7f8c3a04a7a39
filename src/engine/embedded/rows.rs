//! The rows of the store's tables, each with its checksum.
//!
//! SQLite has no checksums of its own. Every row here has a CRC-32 over its fields, so that damage to it is noticed.

use crate::message::{Address, BackendName, SessionId, TopicName};

pub(super) mod clock;
pub(super) mod loss;
pub(super) mod message;
pub(super) mod registration;
pub(super) mod store;

/// Seqs stay below 2^53 on the wire, and times below 2^63: both fit SQLite's integers.
#[allow(clippy::cast_possible_wrap)]
pub(super) fn to_sql_int(n: u64) -> i64 {
    n as i64
}

/// The inverse of [`to_sql_int`].
#[allow(clippy::cast_sign_loss)]
pub(super) fn from_sql_int(n: i64) -> u64 {
    n as u64
}

/// Why a row cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0} is damaged")]
    Damaged(String),
}

impl ReadError {
    /// Whether the file is damaged. Otherwise it cannot be read at this moment.
    pub(super) fn is_damage(&self) -> bool {
        use rusqlite::Error;
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
        match self {
            Self::Damaged(_) => true,
            // SQLite answers `Unknown` if a statement cannot be prepared, because the schema is damaged.
            Self::Sqlite(Error::SqliteFailure(failure, _)) => {
                matches!(failure.code, DatabaseCorrupt | NotADatabase | Unknown)
            }
            Self::Sqlite(error) => matches!(
                error,
                Error::QueryReturnedNoRows
                    | Error::InvalidColumnType(..)
                    | Error::FromSqlConversionFailure(..)
                    | Error::IntegralValueOutOfRange(..)
                    | Error::Utf8Error(..)
                    | Error::SqlInputError { .. }
            ),
        }
    }
}

/// A CRC-32 over fields of known types.
#[derive(Default)]
pub(super) struct Crc(crc32fast::Hasher);

impl Crc {
    pub(super) fn int(mut self, n: i64) -> Self {
        self.0.update(&n.to_le_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(&bytes.len().to_le_bytes());
        self.0.update(bytes);
        self
    }

    pub(super) fn text(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.int(1).bytes(text.as_bytes()),
            None => self.int(0),
        }
    }

    /// Compares with the stored checksum; `what` names the row.
    pub(super) fn verify(self, stored: i64, what: impl FnOnce() -> String) -> Result<(), ReadError> {
        if self.value() == stored { Ok(()) } else { Err(ReadError::Damaged(what())) }
    }

    pub(super) fn value(self) -> i64 {
        i64::from(self.0.finalize())
    }
}

/// An address as it is stored.
pub(super) fn address_text(address: &Address) -> String {
    match address {
        Address::Session(name) => ["s/", name.as_str()].concat(),
        Address::Topic(name) => ["t/", name.as_str()].concat(),
        Address::Backend(name) => ["b/", name.as_str()].concat(),
    }
}

/// The inverse of [`address_text`].
pub(super) fn parse_address(text: &str) -> Option<Address> {
    match text.split_once('/')? {
        ("s", name) => SessionId::new(name).ok().map(Address::Session),
        ("t", name) => TopicName::new(name).ok().map(Address::Topic),
        ("b", name) => BackendName::new(name).ok().map(Address::Backend),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_back_and_others_refused() {
        for text in ["s/A", "t/a/b", "s/t/x", "b/shop"] {
            assert_eq!(address_text(&parse_address(text).unwrap()), text);
        }
        for text in ["", "s", "s/", "x/A", "t/a\nb"] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }

    #[test]
    fn a_checksum_tells_fields_from_each_other() {
        let sums = [
            Crc::default().text(Some("ab")).text(Some("c")).value(),
            Crc::default().text(Some("a")).text(Some("bc")).value(),
            Crc::default().text(Some("abc")).text(None).value(),
            Crc::default().text(None).text(Some("abc")).value(),
        ];
        let distinct: std::collections::BTreeSet<i64> = sums.into_iter().collect();
        assert_eq!(distinct.len(), sums.len());
        assert!(Crc::default().int(7).verify(Crc::default().int(7).value(), String::new).is_ok());
        let error = Crc::default().int(7).verify(0, || "row 7".to_owned()).unwrap_err();
        assert!(error.is_damage() && error.to_string() == "row 7 is damaged");
    }

    #[test]
    fn a_file_that_cannot_be_read_now_is_not_damaged() {
        let sqlite =
            |code| ReadError::from(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
        assert!(sqlite(rusqlite::ffi::SQLITE_CORRUPT).is_damage());
        assert!(sqlite(rusqlite::ffi::SQLITE_NOTADB).is_damage());
        assert!(!sqlite(rusqlite::ffi::SQLITE_IOERR).is_damage());
        assert!(!sqlite(rusqlite::ffi::SQLITE_BUSY).is_damage());
        assert!(ReadError::from(rusqlite::Error::QueryReturnedNoRows).is_damage());
    }
}
