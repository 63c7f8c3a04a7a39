//! Refusals in the log: by the door and the code, with the client, and not more often than somebody can read.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::Level;

use crate::log::Repeated;
use crate::protocol::Code;
use crate::sync::lock;

/// Refusals with the same code at the same door are logged at most once in this time.
const INTERVAL: Duration = Duration::from_secs(10);

/// The refusal that an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefusalNote {
    /// Its code.
    pub code: Code,
    /// The client, if it is known to be another one than the peer of the connection.
    pub client: Option<IpAddr>,
}

/// Logs a refusal. Its text stays out of the log: it may hold what the client has sent.
pub(crate) fn log_refusal(door: &'static str, code: Code, client: Option<IpAddr>) {
    /// One for each door and code. Held for one look-up.
    static LOGGED: Mutex<BTreeMap<(&str, &str), Repeated>> = Mutex::new(BTreeMap::new());
    if !tracing::enabled!(Level::INFO) {
        return;
    }
    let noted = {
        let mut logged = lock(&LOGGED);
        logged.entry((door, code.name())).or_insert(Repeated::every(INTERVAL)).note(Instant::now())
    };
    if let Some(unlogged) = noted {
        let client = client.map(tracing::field::display);
        tracing::info!(code = code.name(), door, client, unlogged, "refused");
    }
}
