//! A WebSocket-first message broker for browser sessions, with a long-poll fallback.
//!
//! # The map
//! Each module uses only the modules above it. `tests/circles.py` checks that.
//!
//! | module | contents |
//! |---|---|
//! | `sync` | locks and their order |
//! | `table` | hash tables for names that clients choose |
//! | [`clock`] | the time of day |
//! | `timer` | a timer for deadlines that are hardly ever reached |
//! | [`log`] | a bounded queue to standard error |
//! | [`descriptors`] | how many files and sockets may be open |
//! | `budget` | how much memory all clients together may take |
//! | `reloadable` | values that a reload replaces |
//! | `reload` | files that are read again when they change |
//! | [`config`] | settings |
//! | [`message`] | names, seqs, and one message that is encoded once |
//! | [`protocol`] | the native wire: frames, error codes, close codes |
//! | `metrics` | counts of what happens |
//! | [`hub`] | the live side of an address: its last events and its readers |
//! | [`engine`] | stores messages and registrations; the contract of an engine |
//! | [`subscriber`] | one reader: it catches up from the engine and then reads live |
//! | [`grant`] | what a caller may do |
//! | `directory` | look-ups of sessions, users and handles |
//! | [`broker`] | send, subscribe, acknowledge; all transports go through it |
//! | `tls` | certificates of the server, and trust of clients |
//! | `identity` | checks of tokens and API keys |
//! | `limits` | rates of sends, connections of an address |
//! | [`link`] | one client connection: whether what was written has arrived |
//! | [`handover`] | sockets go from a running process to a new one |
//! | `edge` | what transports share: authentication, limits, refusals |
//! | `transport` | WebSocket, Server-Sent Events, long-poll, and the protocol of today's x0 client |
//! | `api` | `/v1` for senders and backends, and the lists of operators |
//! | `ops` | for operators: health, metrics, figures of the dashboard, actions; and the descriptions of both protocols |
//! | `assets` | the pages: demo, documentation, dashboard |
//! | [`server`] | routes, listener, connections, shutdown |
//! | [`cli`] | the subcommands |
//!
//! # The way of a message
//! A transport decodes the message. [`broker::Broker::send`] finds its address. [`engine::Engine::append`] stores it and
//! publishes it to the hub of that address, in commit order. The sender's answer waits for the commit, never for
//! readers. Each [`subscriber::Subscriber`] hands the message to its transport, live or from the store. The
//! acknowledgement goes through [`broker::Broker::ack`]. It deletes the message as soon as no attached reader of the
//! session still needs it.

mod api;
mod assets;
pub mod broker;
mod budget;
pub mod cli;
pub mod clock;
pub mod config;
pub mod descriptors;
mod directory;
mod edge;
pub mod engine;
#[doc(hidden)]
pub mod fuzzing;
pub mod grant;
pub mod handover;
pub mod hub;
mod identity;
mod limits;
pub mod link;
pub mod log;
pub mod message;
mod metrics;
mod ops;
pub mod protocol;
mod reload;
mod reloadable;
pub mod server;
pub mod subscriber;
mod sync;
mod table;
mod timer;
mod tls;
mod transport;
