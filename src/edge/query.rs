//! The query of a request.

use axum::http::Uri;

use crate::broker::BrokerError;
use crate::edge::refusal::Refusal;
use crate::grant::Grant;
use crate::message::{Epoch, NameError, Seq, SessionId, TopicName};
use crate::protocol::{MAX_SEQ, Resume};

/// The query of a request, as pairs.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses the query of a URI. A query that cannot be parsed counts as empty.
    #[must_use]
    pub(crate) fn of(uri: &Uri) -> Self {
        axum::extract::Query::try_from_uri(uri).map(|query| Self(query.0)).unwrap_or_default()
    }

    /// The first value of a parameter.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn name<T>(&self, key: &str, new: impl Fn(&str) -> Result<T, NameError>) -> Result<Option<T>, Refusal> {
        self.get(key).map(|value| new(value).map_err(|reason| Refusal::bad_param(key, reason))).transpose()
    }

    /// The session the request names.
    ///
    /// # Errors
    /// `bad_request` if it is not a name.
    pub(crate) fn session(&self) -> Result<Option<SessionId>, Refusal> {
        self.name("session", SessionId::new)
    }

    /// The seq in a parameter.
    ///
    /// # Errors
    /// `bad_request` if it is not a whole number.
    pub(crate) fn seq(&self, key: &str) -> Result<Option<Seq>, Refusal> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let seq = value.parse().ok().filter(|seq| *seq <= MAX_SEQ).map(Seq);
        let invalid = || Refusal::bad_param(key, format_args!("must be a whole number from 0 to {MAX_SEQ}"));
        seq.ok_or_else(invalid).map(Some)
    }

    /// Where to resume: the seq in parameter `key`, and `epoch`.
    ///
    /// # Errors
    /// `bad_request` if it is not a whole number.
    pub(crate) fn resume(&self, key: &str) -> Result<Resume, Refusal> {
        Ok(Resume { after: self.seq(key)?, epoch: self.get("epoch").map(Epoch::new) })
    }

    /// The topics to read. Each resumes at its own `after.<topic>`.
    ///
    /// # Errors
    /// `bad_request` for an invalid name or number. `forbidden` for a topic that may not be read, and for more than
    /// `limit` topics.
    pub(crate) fn topics(&self, grant: &Grant, limit: usize) -> Result<Vec<(TopicName, Resume)>, Refusal> {
        let mut topics = Vec::new();
        for text in self.all("topic") {
            let topic = TopicName::new(text).map_err(|reason| Refusal::bad_param("topic", reason))?;
            if topics.iter().any(|(known, _)| *known == topic) {
                continue;
            }
            if topics.len() >= limit {
                return Err(Refusal::too_many_topics(limit));
            }
            grant.may_read(&topic).map_err(BrokerError::from)?;
            topics.push((topic, self.resume(&format!("after.{text}"))?));
        }
        Ok(topics)
    }
}
