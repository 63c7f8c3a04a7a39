//! A WebSocket-first message broker for browser sessions, with a long-poll fallback.
//!
//! # The map
//! Each module uses only those above it.
//!
//! | module | what lives there |
//! |---|---|
//! | [`message`] | names, seqs, one committed message encoded once |
//! | `sync` | locks, and their order |
//! | [`clock`] | the time of day |
//! | [`reload`] | files that are read again when they change |
//! | [`protocol`] | the native wire: frames, error codes, close codes |
//! | [`hub`] | the live side of an address: a small broadcast channel, and who is there |
//! | [`engine`] | what stores messages and registrations, and its contract |
//! | [`subscriber`] | one reader: catch up from the engine, then live |
//! | [`tls`] | certificates, and whom clients trust |
//! | [`grant`] | what a caller may do |
//! | [`directory`] | who is meant by a name: sessions, users, handles |
//! | [`broker`] | send, subscribe, acknowledge: the one door |
//! | [`config`] | settings |
//! | [`identity`] | checks tokens and API keys |
//! | [`limits`] | sends in a second, connections of an address |
//! | [`link`] | one client connection: did what was written arrive? |
//! | [`edge`] | what all transports share; refusals |
//! | [`transport`] | WebSocket, SSE, long-poll, and today's x0 client |
//! | [`api`], [`ops`], [`assets`] | `/v1` for senders and backends, health, the pages |
//! | [`server`] | router, listener, shutdown |
//! | [`cli`] | `send`, `listen`, `health`: clients over the wire |
//!
//! # The way of a message
//! A transport decodes it, [`broker::Broker::send`] finds its address, [`engine::Engine::append`] stores it
//! and publishes it to the hub of that address, in commit order. The sender's answer waits for the commit,
//! never for readers. Each [`subscriber::Subscriber`] hands it to its transport, live or from the store; the
//! acknowledgement goes through [`broker::Broker::ack`], which deletes it once no attached reader of the
//! session still needs it.

pub mod api;
pub mod assets;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod directory;
pub mod edge;
pub mod engine;
#[doc(hidden)]
pub mod fuzzing;
pub mod grant;
pub mod hub;
pub mod identity;
pub mod limits;
pub mod link;
pub mod message;
pub mod ops;
pub mod protocol;
pub mod reload;
pub mod server;
pub mod subscriber;
mod sync;
pub mod tls;
pub mod transport;
