//! Tests at the edge: the real binary on port 0, real sockets. One module for each promise.

// Shared helpers are `pub` for their readers; nothing outside of this binary sees them.
#![allow(unreachable_pub)]

mod common;

mod legacy;
mod legacy_receipt;
mod limits;
mod mailbox;
mod model;
mod parity;
mod poll;
mod restart;
mod send;
mod sse;
mod topics;
mod waiting;
mod websocket;
