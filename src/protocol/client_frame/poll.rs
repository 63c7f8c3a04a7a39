//! The body of `POST /v1/messages/poll`.

use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::message::{Epoch, NameError, Seq, SessionId, TopicName};
use crate::protocol::client_frame::{RawFields, Resume};
use crate::protocol::json::{Malformed, field, flag, optional, parse_object, required, string};

/// An example of the body.
const EXAMPLE: &str = r#"{"session":"A","after":17,"epoch":"e1","wait":20}"#;

/// One poll: the parameters of `GET /v1/messages`, which addresses do not hide, and the proof.
#[derive(Debug, ToSchema)]
#[schema(as = Poll)]
pub struct PollBody {
    /// The session of the mailbox; optional with a token, absent with an API key, which may have a mailbox itself. Without a
    /// mailbox, topics are read.
    pub session: Option<SessionId>,
    /// The proof; the bearer of the header `Authorization` if absent.
    pub token: Option<String>,
    /// The `seq` of the last answer; this acknowledges it.
    #[schema(inline)]
    pub after: Option<Seq>,
    /// The epoch of `after`.
    #[schema(value_type = Option<String>)]
    pub epoch: Option<Epoch>,
    /// False: `after` acknowledges nothing. For a client that reads on while it works on messages.
    #[schema(value_type = Option<bool>)]
    pub ack: bool,
    /// How long to wait, in seconds; 10 by default.
    #[schema(minimum = 0, maximum = 60)]
    pub wait: Option<f64>,
    /// Topics to read as well.
    #[schema(value_type = Option<Vec<PollTopic>>)]
    pub topics: Vec<PollTopic>,
}

/// A topic of a poll.
#[derive(Debug, ToSchema)]
pub struct PollTopic {
    /// The topic.
    pub topic: String,
    /// Where to go on: what `topics` of the last answer says.
    #[schema(inline)]
    pub after: Option<Seq>,
    /// The epoch of `after`.
    #[schema(value_type = Option<String>)]
    pub epoch: Option<Epoch>,
    /// Tell how the members of the topic change.
    #[schema(value_type = Option<bool>)]
    pub presence: bool,
}

impl PollTopic {
    fn decode(object: &str) -> Result<Self, Malformed> {
        let fields: RawFields<'_> = parse_object(object, r#"{"topic":"news","after":120,"epoch":"e1"}"#)?;
        let topic = string(required(fields.topic, "topic")?, "topic")?;
        let Resume { after, epoch } = fields.resume()?;
        let presence = flag(fields.presence, "presence")?;
        Ok(Self { topic, after, epoch, presence })
    }

    /// The name, and where to go on.
    ///
    /// # Errors
    /// The name breaks a rule.
    pub(crate) fn position(&self) -> Result<(TopicName, Resume), NameError> {
        let resume = Resume { after: self.after, epoch: self.epoch.clone() };
        TopicName::new(&self.topic).map(|topic| (topic, resume))
    }
}

/// The fields that only polls have.
#[derive(Deserialize, Default)]
#[serde(default)]
struct PollFields<'a> {
    #[serde(borrow)]
    ack: Option<&'a RawValue>,
    #[serde(borrow)]
    wait: Option<&'a RawValue>,
    #[serde(borrow)]
    topics: Option<&'a RawValue>,
}

impl PollBody {
    /// Decodes one poll.
    ///
    /// # Errors
    /// [`Malformed`] names the field that is wrong and what it must hold.
    pub(crate) fn decode(object: &str) -> Result<Self, Malformed> {
        let shared: RawFields<'_> = parse_object(object, EXAMPLE)?;
        let own: PollFields<'_> = parse_object(object, EXAMPLE)?;
        let Resume { after, epoch } = shared.resume()?;
        let ack = optional(own.ack).map(|raw| field(raw, "ack", "true or false"));
        let wait = optional(own.wait).map(|raw| field(raw, "wait", "a number of seconds from 0 to 60"));
        let topics = optional(own.topics)
            .map(|raw| field(raw, "topics", "an array of objects like {\"topic\":\"news\"}"));
        let topics: Vec<&RawValue> = topics.transpose()?.unwrap_or_default();
        Ok(Self {
            session: shared.session()?,
            token: shared.token()?,
            after,
            epoch,
            ack: ack.transpose()?.unwrap_or(true),
            wait: wait.transpose()?,
            topics: topics
                .into_iter()
                .map(|topic| PollTopic::decode(topic.get()))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Where to resume the mailbox.
    pub(crate) fn resume(&self) -> Resume {
        Resume { after: self.after, epoch: self.epoch.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_has_the_fields_of_the_query_and_the_proof() {
        let text = r#"{"session":"A","token":"t","after":17,"epoch":"e1","wait":2.5,"topics":[{"topic":"news","after":3,"presence":true},{"topic":""}]}"#;
        let poll = PollBody::decode(text).unwrap();
        assert_eq!((poll.session, poll.token.as_deref()), (SessionId::new("A").ok(), Some("t")));
        assert_eq!((poll.after, poll.epoch, poll.wait), (Some(Seq(17)), Some(Epoch::new("e1")), Some(2.5)));
        assert_eq!(poll.topics[0].position().unwrap().1.after, Some(Seq(3)));
        assert!(poll.topics[0].presence && !poll.topics[1].presence);
        assert!(poll.ack && !PollBody::decode(r#"{"ack":false}"#).unwrap().ack);
        assert!(poll.topics[1].position().is_err(), "a bad name does not end the poll");
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (text, name) in [
            (r#"{"wait":"x"}"#, "`wait`"),
            (r#"{"ack":0}"#, "`ack`"),
            (r#"{"topics":{}}"#, "`topics`"),
            (r#"{"topics":[{"after":1}]}"#, "`topic`"),
            (r#"{"topics":["news"]}"#, "JSON object"),
            (r#"{"topics":[{"topic":"news","presence":1}]}"#, "`presence`"),
            (r#"{"session":1}"#, "`session`"),
            ("[]", "JSON object"),
        ] {
            let error = PollBody::decode(text).unwrap_err().to_string();
            assert!(error.contains(name), "{text}: {error}");
        }
    }
}
