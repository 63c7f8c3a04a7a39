//! The subcommands. `send`, `listen` and `health` are clients over the wire and know nothing of the server. `check` reads
//! a store that no broker has open, and `migrate` moves it into NATS. `token` makes tokens for development, and `config` checks and prints
//! settings.

mod backup;
mod check;
mod config;
mod credential;
mod frame;
mod health;
mod listen;
#[cfg(feature = "nats")]
mod migrate;
mod say;
mod send;
mod sender;
mod target;
mod time;
mod token;

pub use backup::{BackupArgs, backup, restore};
pub use check::{CheckArgs, check};
pub use config::{ConfigCommand, config};
pub use health::{HealthArgs, health};
pub use listen::{ListenArgs, listen};
#[cfg(feature = "nats")]
pub use migrate::migrate;
pub use say::{print, print_error};
pub use send::{SendArgs, send};
pub use token::{TokenArgs, token};
