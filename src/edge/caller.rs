//! The caller of a request.

use std::net::IpAddr;

use crate::edge::refusal::Refusal;
use crate::grant::Grant;
use crate::limits::RateKey;
use crate::message::SessionId;
use crate::protocol::Code;

/// The caller of a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// What the caller may do.
    pub grant: Grant,
    /// The address of the client. `None` in tests without a socket.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// The session of the mailbox that the request reads.
    ///
    /// # Errors
    /// `unauthorized` if it names none.
    pub(crate) fn session(&self) -> Result<&SessionId, Refusal> {
        let how = match self.grant {
            Grant::Backend(_) => {
                "an API key has no session; show a token of the session instead, or read topics with ?topic=…"
            }
            _ => "the request names no session; add ?session=… to the address",
        };
        self.grant.session().ok_or_else(|| Refusal::new(Code::Unauthorized, how))
    }

    /// The session of the mailbox that is read besides topics. A caller without a session may read topics alone.
    ///
    /// # Errors
    /// `unauthorized` if neither is read.
    pub(crate) fn mailbox(&self, reads_topics: bool) -> Result<Option<&SessionId>, Refusal> {
        match self.grant.session() {
            None if reads_topics => Ok(None),
            _ => self.session().map(Some),
        }
    }

    /// The sender in the rates. `None` for a backend, which has no limit.
    pub(super) fn rate_key(&self) -> Option<RateKey> {
        match (&self.grant, self.address) {
            (Grant::Backend(_), _) => None,
            // All sessions of a user share one rate.
            (Grant::Client(client), _) if client.user.is_some() => client.user.clone().map(RateKey::User),
            (grant, address) => match grant.session() {
                Some(session) => Some(RateKey::Session(session.clone())),
                None => address.map(RateKey::Address),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::grant::{Backend, Client};
    use crate::message::{Handle, UserId};

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    fn caller(grant: Grant) -> Caller {
        Caller { grant, address: Some([192, 0, 2, 1].into()) }
    }

    fn client(user: Option<&str>) -> Caller {
        let user = user.map(|name| UserId::new(name).unwrap());
        caller(Grant::Client(Arc::new(Client::new(session("A"), Handle([7; 16]), user, 0))))
    }

    fn backend() -> Caller {
        let (name, key_digest) = ("shop".into(), [0; 32]);
        let backend = Backend { name, from: None, send: None, topics: None, sessions: true, key_digest };
        caller(Grant::Backend(Arc::new(backend)))
    }

    #[test]
    fn a_rate_belongs_to_the_user_the_session_or_the_address() {
        let user = UserId::new("ann").unwrap();
        assert_eq!(client(Some("ann")).rate_key(), Some(RateKey::User(user)));
        assert_eq!(client(None).rate_key(), Some(RateKey::Session(session("A"))));
        let open = |session| caller(Grant::Open { session, manages: false });
        assert_eq!(open(Some(session("B"))).rate_key(), Some(RateKey::Session(session("B"))));
        assert_eq!(open(None).rate_key(), Some(RateKey::Address([192, 0, 2, 1].into())));
        assert_eq!(backend().rate_key(), None);
    }

    #[test]
    fn a_mailbox_needs_a_session() {
        assert_eq!(client(None).session().unwrap().as_str(), "A");
        let refusal = caller(Grant::Open { session: None, manages: false }).session().unwrap_err();
        assert_eq!(refusal.code, Code::Unauthorized);
        assert!(backend().session().unwrap_err().message.contains("API key"));
    }
}
