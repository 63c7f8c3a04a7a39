//! Who makes a request.

use std::net::IpAddr;

use crate::edge::refusal::Refusal;
use crate::grant::Grant;
use crate::limits::RateKey;
use crate::message::SessionId;
use crate::protocol::Code;

/// Who makes a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// What it may do.
    pub grant: Grant,
    /// The client's address, where it is known.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// The session whose mailbox the request reads.
    ///
    /// # Errors
    /// `unauthorized` if it names none.
    pub(crate) fn session(&self) -> Result<&SessionId, Refusal> {
        let how = match self.grant {
            Grant::Backend(_) => "an API key holds no session; show a token of the session instead",
            _ => "say whose mailbox to read: add ?session=… to the address",
        };
        self.grant.session().ok_or_else(|| Refusal::new(Code::Unauthorized, how))
    }

    /// Whose rate a send counts against. `None` for a backend, which has no limit.
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
