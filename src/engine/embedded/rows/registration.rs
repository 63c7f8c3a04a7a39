//! Table `directory`: one row for each registered session.

use rusqlite::{Connection, params};

use crate::engine::embedded::rows::store::StoreTotals;
use crate::engine::embedded::rows::{Crc, ReadError, from_sql_int, to_sql_int};
use crate::engine::{Registration, RegistrationSource};
use crate::message::{Seq, SessionId, UserId};

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
    let Some(registration) = registration else { return Ok(()) };
    let (user, ends) = (encode(registration), to_sql_int(registration.expires_at));
    let (session, user) = (session.as_str(), Some(user.as_str()));
    let crc = registration_crc(session, user, ends).value();
    to.prepare_cached("INSERT INTO directory VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![session, user, ends, crc])?;
    totals.sessions += 1;
    Ok(())
}

/// Column `user`: the source of the registration, when its tokens end, since when it has its owner, and the user. The two
/// in the middle may be absent. Format 1 had neither.
fn encode(registration: &Registration) -> String {
    let Registration { user, source, tokens_until, since, .. } = registration;
    let source = match source {
        RegistrationSource::Backend { until, proof: false } => format!("b{until}"),
        RegistrationSource::Backend { until, proof: true } => format!("p{until}"),
        RegistrationSource::Token => "t".to_owned(),
        RegistrationSource::Revoked => "r".to_owned(),
        RegistrationSource::Former { through } => format!("f{through}"),
    };
    let tokens = if *tokens_until > 0 { format!(",x{tokens_until}") } else { String::new() };
    let since = if *since > Seq::START { format!(",s{since}") } else { String::new() };
    format!("{source}{tokens}{since}/{}", user.as_ref().map_or("", UserId::as_str))
}

/// The inverse of [`encode`]; `None` for text that it does not make.
fn decode(text: Option<&str>, expires_at: u64) -> Option<Registration> {
    // In format 1 a revoked session has no text.
    let (words, user) = text.unwrap_or("r/").split_once('/')?;
    let mut words = words.split(',');
    let number = |word: &str| word.get(1..)?.parse::<u64>().ok();
    let source = match words.next()? {
        "t" => RegistrationSource::Token,
        "r" => RegistrationSource::Revoked,
        word if word.starts_with(['b', 'p']) => {
            RegistrationSource::Backend { until: number(word)?, proof: word.starts_with('p') }
        }
        word if word.starts_with('f') => RegistrationSource::Former { through: Seq(number(word)?) },
        _ => return None,
    };
    let (mut tokens_until, mut since) = (0, Seq::START);
    for word in words {
        match word.chars().next()? {
            'x' => tokens_until = number(word)?,
            's' => since = Seq(number(word)?),
            _ => return None,
        }
    }
    let user = Some(user).filter(|user| !user.is_empty()).map(UserId::new).transpose().ok()?;
    Some(Registration { user, expires_at, source, tokens_until, since })
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
        let registration = decode(user, from_sql_int(ends)).ok_or_else(damaged)?;
        let session = SessionId::new(session).map_err(|_| damaged())?;
        each(&session, registration)?;
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
        Registration { user, expires_at: 99, source, tokens_until: 0, since: Seq::START }
    }

    #[test]
    fn a_registration_is_read_back_from_its_text_and_other_text_is_damage() {
        let sources = [
            (RegistrationSource::Backend { until: 5, proof: false }, "b5"),
            (RegistrationSource::Backend { until: 5, proof: true }, "p5"),
            (RegistrationSource::Token, "t"),
            (RegistrationSource::Revoked, "r"),
            (RegistrationSource::Former { through: Seq(8) }, "f8"),
        ];
        for (source, text) in sources {
            for (tokens_until, since, words) in [(0, 0, ""), (7, 0, ",x7"), (0, 6, ",s6"), (7, 6, ",x7,s6")] {
                let registration = Registration { tokens_until, since: Seq(since), ..registration(source) };
                let user = registration.user.as_ref().map_or("", UserId::as_str);
                assert_eq!(encode(&registration), format!("{text}{words}/{user}"));
                assert_eq!(decode(Some(&encode(&registration)), 99), Some(registration));
            }
        }
        assert_eq!(decode(None, 99), Some(registration(RegistrationSource::Revoked)), "format 1");
        for other in ["", "t", "b/u", "p/u", "p-1/u", "f-1/u", "z/u", "t,/u", "t,x/u", "t,z1/u", "é/u"] {
            assert_eq!(decode(Some(other), 99), None, "{other}");
        }
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
            RegistrationSource::Backend { until: 5, proof: true },
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
