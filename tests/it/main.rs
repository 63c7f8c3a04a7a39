//! Integration tests: the binary on port 0, and clients on sockets. One module for each subject.

// Shared helpers are `pub`; no other crate sees them.
#![allow(unreachable_pub)]
// A test that cannot go on panics at once, in helpers too.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    clippy::large_futures
)]

mod backend_mailbox;
mod backup;
mod clock;
mod common;

mod command_line;
mod connections;
mod crash;
mod damage;
mod dashboard;
mod description;
mod descriptors;
mod disk_full;
mod failing_disk;
mod failing_store;
mod fanout;
mod formats;
mod fuzz;
mod guarded;
mod handover;
mod hosts;
mod http;
mod identity;
mod legacy;
mod legacy_guarded;
mod legacy_receipt;
mod limits;
mod listen;
mod lists;
mod log;
mod mailbox;
mod memory;
mod metrics;
#[cfg(feature = "nats")]
mod migrate;
mod model;
#[cfg(feature = "nats")]
mod nats;
mod operator;
mod origins;
mod owners;
mod pages;
mod parity;
mod permissions;
mod poll;
mod presence;
mod private_store;
mod proof;
mod receipts;
mod reload;
mod request;
mod restart;
mod secrets;
mod send;
mod sessions;
mod settings;
mod shares;
mod siege;
mod simulation;
mod sse;
mod starting;
mod systemd;
mod tls;
mod tokens;
mod topics;
mod waiting;
mod websocket;
