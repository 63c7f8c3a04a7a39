//! The caller of a request.

use std::net::IpAddr;

use crate::edge::refusal::Refusal;
use crate::grant::Grant;
use crate::limits::RateKey;
use crate::message::Address;
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
    /// The mailbox that the request reads or acknowledges.
    ///
    /// # Errors
    /// `unauthorized` if the caller has none.
    pub(crate) fn mailbox(&self) -> Result<Address, Refusal> {
        let how = match self.grant {
            Grant::Backend(_) => {
                "this API key has no mailbox (`mailbox = true`) and no session; show a token of the session instead, or \
                 read topics with ?topic=…"
            }
            _ => "the request names no session; add ?session=… to the address",
        };
        self.grant.mailbox().ok_or_else(|| Refusal::new(Code::Unauthorized, how))
    }

    /// The mailbox that is read besides topics. A caller without a mailbox may read topics alone.
    ///
    /// # Errors
    /// `unauthorized` if neither is read.
    pub(crate) fn mailbox_besides(&self, reads_topics: bool) -> Result<Option<Address>, Refusal> {
        match self.grant.mailbox() {
            None if reads_topics => Ok(None),
            _ => self.mailbox().map(Some),
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
    use crate::grant::{Backend, Client, Proof};
    use crate::message::{BackendName, Handle, SessionId, UserId};

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    fn caller(grant: Grant) -> Caller {
        Caller { grant, address: Some([192, 0, 2, 1].into()) }
    }

    fn client(user: Option<&str>) -> Caller {
        let user = user.map(|name| UserId::new(name).unwrap());
        caller(Grant::Client(Arc::new(Client::new(session("A"), Handle([7; 16]), user, Proof::SessionId))))
    }

    fn backend(mailbox: Option<BackendName>) -> Caller {
        let (name, key_digest) = ("shop".into(), [0; 32]);
        let backend = Backend {
            name,
            from: None,
            send: None,
            topics: None,
            presence: None,
            sessions: true,
            ops: false,
            mailbox,
            key_digest,
        };
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
        assert_eq!(backend(None).rate_key(), None);
    }

    #[test]
    fn a_mailbox_is_that_of_a_session_or_of_a_backend() {
        assert_eq!(client(None).mailbox().unwrap(), Address::Session(session("A")));
        let refusal = caller(Grant::Open { session: None, manages: false }).mailbox().unwrap_err();
        assert_eq!(refusal.code, Code::Unauthorized);
        assert!(backend(None).mailbox().unwrap_err().message.contains("mailbox = true"));
        assert_eq!(backend(None).mailbox_besides(true), Ok(None));
        let name = BackendName::new("shop").unwrap();
        assert_eq!(backend(Some(name.clone())).mailbox(), Ok(Address::Backend(name)));
    }
}
