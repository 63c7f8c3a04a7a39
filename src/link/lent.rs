//! The output of a connection whose task rests. See [`Outlet`].

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use socket2::SockRef;

use crate::hub::{Encoded, Encoding, Outlet};
use crate::link::Link;
use crate::sync::lock;

impl Link {
    /// Notes that what is written goes to the socket as it is: there is no TLS.
    pub(crate) fn note_cleartext(&self) {
        self.cleartext.store(true, Ordering::Relaxed);
    }

    fn is_cleartext(&self) -> bool {
        self.cleartext.load(Ordering::Relaxed)
    }
}

/// Marks a request whose connection lends its output, if the answer says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lendable;

/// The output of a connection, which its task lends while it rests.
#[derive(Debug)]
pub(crate) struct LentOutput {
    link: Arc<Link>,
    encoding: &'static Encoding,
    /// Held while something is written.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_lent: bool,
    /// Whether nothing else is to be written before what comes next.
    is_allowed: bool,
    is_closed: bool,
    /// What the peer did not take. Boxed, since this is rare, and each connection has the place for it.
    rest: Option<Box<Bytes>>,
}

impl LentOutput {
    /// The output of a connection that carries one reader. `None` if what is written to it does not go to the socket as it is.
    pub(crate) fn new(link: &Arc<Link>, encoding: &'static Encoding) -> Option<Arc<Self>> {
        if !link.is_cleartext() {
            return None;
        }
        Some(Arc::new(Self { link: Arc::clone(link), encoding, state: Mutex::default() }))
    }

    /// Notes whether it may be lent: whether nothing else is to be written before what comes next.
    pub(crate) fn allow(&self, allowed: bool) {
        lock(&self.state).is_allowed = allowed;
    }

    /// Lends the output until it is taken back, if it is `allowed`: if nothing else is to be written before what comes next.
    pub(crate) fn lend_if(&self, allowed: bool) {
        let mut state = lock(&self.state);
        state.is_lent = allowed && !state.is_closed;
    }

    /// Lends the output if it may be, until it is taken back.
    pub(crate) fn lend(&self) {
        let mut state = lock(&self.state);
        state.is_lent = state.is_allowed && !state.is_closed;
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
        let Some(socket) = self.link.live().filter(|_| state.is_lent) else { return false };
        let Some(offset) = offset() else { return false };
        let left = &encoded.bytes[offset..];
        if left.is_empty() {
            return true;
        }
        // The socket does not block. An error comes again when the task writes.
        let written = SockRef::from(&*socket).send(left).unwrap_or(0);
        self.link.written.fetch_add(written as u64, Ordering::Relaxed);
        if written < left.len() {
            (state.is_lent, state.rest) = (false, Some(Box::new((encoded.rest)(offset + written))));
        }
        written == left.len()
    }

    fn close(&self) {
        let mut state = lock(&self.state);
        (state.is_lent, state.is_closed) = (false, true);
    }
}
