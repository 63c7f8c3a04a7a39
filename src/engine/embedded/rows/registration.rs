//! Table `directory`: one row for each registered session.

use rusqlite::{Connection, params};

use crate::engine::embedded::rows::store::StoreTotals;
use crate::engine::embedded::rows::{Crc, ReadError, from_sql_int, to_sql_int};
use crate::engine::{Registration, RegistrationSource};
use crate::message::{SessionId, UserId};

fn registration_crc(session: &str, user: Option<&str>, ends: i64) -> Crc {
    Crc::default().text(Some(session)).text(user).int(ends)
}

/// Stores a registration; `None` deletes it.
pub(crate) fn write_registration(
    to: &Connection,
    session: &SessionId,
    registration: Option<&Registration>,
    totals: &mut StoreTotals,
) -> rusqlite::Result<()> {
    let gone = to.prepare_cached("DELETE FROM directory WHERE session = ?1")?.execute([session.as_str()])?;
    totals.sessions -= i64::from(gone > 0);
    let Some(Registration { user, expires_at, source }) = registration else { return Ok(()) };
    // The source of the registration, and the user. A revoked session has neither.
    let user = user.as_ref().map_or("", UserId::as_str);
    let user = match source {
        RegistrationSource::Backend { until } => Some(format!("b{until}/{user}")),
        RegistrationSource::Token => Some(format!("t/{user}")),
        RegistrationSource::Revoked => None,
    };
    let (session, user, ends) = (session.as_str(), user.as_deref(), to_sql_int(*expires_at));
    let crc = registration_crc(session, user, ends).value();
    to.prepare_cached("INSERT INTO directory VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![session, user, ends, crc])?;
    totals.sessions += 1;
    Ok(())
}

/// Reads the registered sessions. Returns their number.
pub(crate) fn read_directory(
    from: &Connection,
    mut each: impl FnMut(&SessionId, Registration) -> Result<(), ReadError>,
) -> Result<i64, ReadError> {
    let mut statement = from.prepare("SELECT session, user, ends, crc FROM directory")?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let damaged = || ReadError::Damaged("a row of table `directory`".to_owned());
        let session = row.get_ref(0)?.as_str().map_err(|_| damaged())?;
        let user = row.get_ref(1)?.as_str_or_null().map_err(|_| damaged())?;
        let ends = row.get_ref(2)?.as_i64().map_err(|_| damaged())?;
        registration_crc(session, user, ends)
            .verify(row.get(3)?, || "a row of table `directory`".to_owned())?;
        let (source, user) = match user.map(|user| user.split_once('/')) {
            None => (RegistrationSource::Revoked, ""),
            Some(Some(("t", user))) => (RegistrationSource::Token, user),
            Some(Some((word, user))) => {
                let until = word.strip_prefix('b').and_then(|until| until.parse().ok());
                (RegistrationSource::Backend { until: until.ok_or_else(damaged)? }, user)
            }
            Some(None) => return Err(damaged()),
        };
        let user = Some(user).filter(|user| !user.is_empty()).map(UserId::new).transpose();
        let user = user.map_err(|_| damaged())?;
        let session = SessionId::new(session).map_err(|_| damaged())?;
        each(&session, Registration { user, expires_at: from_sql_int(ends), source })?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::disk::open::SCHEMA;

    fn registration(source: RegistrationSource) -> Registration {
        let user = (source != RegistrationSource::Revoked).then(|| UserId::new("u/v").unwrap());
        Registration { user, expires_at: 99, source }
    }

    fn read(connection: &Connection) -> Result<Vec<Registration>, ReadError> {
        let mut found = Vec::new();
        let count = read_directory(connection, |_, registration| {
            found.push(registration);
            Ok(())
        })?;
        assert_eq!(count, i64::try_from(found.len()).unwrap());
        Ok(found)
    }

    #[test]
    fn registrations_are_read_back_and_counted() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        let mut totals = StoreTotals::default();
        let sources = [
            RegistrationSource::Backend { until: 5 },
            RegistrationSource::Token,
            RegistrationSource::Revoked,
        ];
        for (name, source) in ["a", "b", "c"].into_iter().zip(sources) {
            let session = SessionId::new(name).unwrap();
            write_registration(&connection, &session, Some(&registration(source)), &mut totals).unwrap();
        }
        assert_eq!(read(&connection).unwrap(), sources.map(registration));
        assert_eq!(totals.sessions, 3);
        for _ in 0..2 {
            write_registration(&connection, &SessionId::new("b").unwrap(), None, &mut totals).unwrap();
            assert_eq!(totals.sessions, 2, "it is deleted once");
        }
        connection.execute_batch("UPDATE directory SET ends = 100 WHERE session = 'a'").unwrap();
        assert!(read(&connection).unwrap_err().is_damage());
    }
}
