//! The binary as a server, and a client for each transport. Nothing here sleeps: every wait is for an event.

mod command;
mod faults;
mod http;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "nats")]
mod network;
#[cfg(feature = "nats")]
mod proxy;
mod server;
mod sse;
mod websocket;
mod x0;

use std::time::Duration;

use serde_json::Value;

pub use command::{BINARY, check, check_json, command, output_of, signal};
pub use faults::Faults;
pub use http::{Http, Reply};
#[cfg(feature = "nats")]
pub use nats::{NatsServer, all_healthy, free_port, migration, node_at, node_on, node_with};
#[cfg(feature = "nats")]
pub use network::{Host, Network};
#[cfg(feature = "nats")]
pub use proxy::Proxy;
pub use server::{Mailbox, TestServer, hide_variables_of_tests};
pub use sse::Events;
pub use websocket::{Ws, connect_with_small_buffer, upgrade};
pub use x0::{HANDLER, x0_messages, x0_poll, x0_set, x0_target};

/// The messages of an answer that holds none.
pub const NOTHING: [Value; 0] = [];

/// Every event in these tests comes earlier, also on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits for an event; panics if it does not come.
pub async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, event).await.expect("the event comes within the deadline")
}
