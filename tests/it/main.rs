//! Tests at the edge: the real binary on port 0, real sockets. One module for each promise.

// Shared helpers are `pub` for their readers; nothing outside of this binary sees them.
#![allow(unreachable_pub)]
// A test that cannot go on is to say so at once, helpers included.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    clippy::large_futures
)]

mod common;

mod crash;
mod damage;
mod description;
mod disk_full;
mod doors;
mod fuzz;
mod guarded;
mod legacy;
mod legacy_guarded;
mod legacy_receipt;
mod limits;
mod mailbox;
mod model;
mod pages;
mod parity;
mod permissions;
mod poll;
mod receipts;
mod restart;
mod secrets;
mod send;
mod sessions;
mod simulation;
mod sse;
mod tokens;
mod topics;
mod waiting;
mod websocket;
