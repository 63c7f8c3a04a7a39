//! The output of a connection whose task rests. See [`Outlet`].

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::hub::{Encoded, Encoding, Outlet};
use crate::link::Link;
use crate::link::socket::Socket;
use crate::sync::lock;

impl Link {
    /// Notes that what is written goes to the socket as it is: there is no TLS.
    pub(crate) fn note_cleartext(&self) {
        self.cleartext.store(true, Ordering::Relaxed);
    }

    /// Whether what is written goes to the socket as it is.
    pub(crate) fn is_cleartext(&self) -> bool {
        self.cleartext.load(Ordering::Relaxed)
    }
}

/// Marks a request whose connection lends its output, if the answer says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lendable;

/// The output of a connection, which its task lends while it rests.
#[derive(Debug)]
pub(crate) struct LentOutput {
    encoding: &'static Encoding,
    /// Held while something is written.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The socket, until the connection ends.
    socket: Option<Arc<Socket>>,
    is_lent: bool,
    /// Whether nothing else is to be written before what comes next.
    is_allowed: bool,
    /// What the peer did not take. Boxed, since this is rare, and each connection has the place for it.
    rest: Option<Box<Bytes>>,
}

impl LentOutput {
    /// The output of a connection that carries one reader. `None` if what is written to it does not go to the socket as it is.
    pub(crate) fn new(link: &Arc<Link>, encoding: &'static Encoding) -> Option<Arc<Self>> {
        let socket = link.live().filter(|_| link.is_cleartext())?;
        let state = State { socket: Some(socket), ..State::default() };
        Some(Arc::new(Self { encoding, state: Mutex::new(state) }))
    }

    /// Notes whether it may be lent: whether nothing else is to be written before what comes next.
    pub(crate) fn allow(&self, allowed: bool) {
        lock(&self.state).is_allowed = allowed;
    }

    /// Lends the output until it is taken back, if it is `allowed`: if nothing else is to be written before what comes next.
    pub(crate) fn lend_if(&self, allowed: bool) {
        let mut state = lock(&self.state);
        state.is_lent = allowed && state.socket.is_some();
    }

    /// Lends the output if it may be, until it is taken back.
    pub(crate) fn lend(&self) {
        let mut state = lock(&self.state);
        state.is_lent = state.is_allowed && state.socket.is_some();
    }

    /// Takes the output back. Answers what is to be written before anything else.
    pub(crate) fn take_back(&self) -> Option<Bytes> {
        let mut state = lock(&self.state);
        state.is_lent = false;
        state.rest.take().map(|rest| *rest)
    }
}

impl Outlet for LentOutput {
    fn encoding(&self) -> &'static Encoding {
        self.encoding
    }

    fn write(&self, encoded: Encoded<'_>, offset: &mut dyn FnMut() -> Option<usize>) -> bool {
        // The task has it otherwise, or somebody else writes.
        let Ok(mut state) = self.state.try_lock() else { return false };
        let state = &mut *state;
        let Some(socket) = state.socket.as_ref().filter(|_| state.is_lent) else { return false };
        let Some(offset) = offset() else { return false };
        let left = &encoded.bytes[offset..];
        if left.is_empty() {
            return true;
        }
        let written = socket.write_now(left);
        if written < left.len() {
            (state.is_lent, state.rest) = (false, Some(Box::new((encoded.rest)(offset + written))));
        }
        written == left.len()
    }

    fn close(&self) {
        let mut state = lock(&self.state);
        (state.is_lent, state.socket) = (false, None);
    }
}
