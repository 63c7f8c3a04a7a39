//! What the settings of a server name and what follows from them, without a start.

use crate::clock::Clock;
use crate::config::Config;
#[cfg(feature = "nats")]
use crate::config::EngineKind;
use crate::descriptors;
use crate::identity::Identity;
use crate::reload::SetupError;
use crate::server::entrance::limits_of_addresses;
use crate::server::settings::{budget_bytes, engine_settings};
use crate::tls;

/// Reads all files of keys and certificates as a start does: what is wrong with them. Call it within a tokio runtime.
#[must_use]
pub fn check_files(config: &Config) -> Vec<String> {
    let access = &config.access;
    let tls = access.tls_cert.as_ref().zip(access.tls_key.as_ref());
    let checked = [
        Identity::new(access).err(),
        tls.and_then(|(cert, key)| tls::server_config(cert, key).err()),
        unreadable_credentials(config),
    ];
    checked.into_iter().flatten().map(|SetupError(text)| text).collect()
}

#[cfg(feature = "nats")]
fn unreadable_credentials(config: &Config) -> Option<SetupError> {
    let path = config.cluster.nats_creds.as_ref().filter(|_| config.cluster.engine == EngineKind::Nats)?;
    let error = crate::reload::read_text_file(path).err()?;
    Some(SetupError(format!("--nats-creds {}: {error}", path.display())))
}

#[cfg(not(feature = "nats"))]
fn unreadable_credentials(_: &Config) -> Option<SetupError> {
    None
}

/// The values of settings whose defaults depend on other settings or on the machine. `0` means no limit.
#[must_use]
pub fn derived_settings(config: &Config) -> Vec<(&'static str, String)> {
    let access = &config.access;
    let (requests, _) = limits_of_addresses(access, descriptors::for_connections());
    let no_limit = |limit: usize| if limit == usize::MAX { 0 } else { limit };
    let (rate, burst) = access.rate().unwrap_or_default();
    vec![
        ("dedup-window", humantime::format_duration(config.dedup_window()).to_string()),
        ("store-limit", engine_settings(config, Clock::Wall).total_bytes.to_string()),
        ("memory-budget", budget_bytes(config).to_string()),
        ("send-rate", rate.to_string()),
        ("send-burst", burst.to_string()),
        ("send-bytes-rate", access.bytes_rate().unwrap_or_default().to_string()),
        ("connections-per-session", no_limit(access.max_connections_per_session()).to_string()),
        ("connections-per-address", no_limit(requests.limit()).to_string()),
    ]
}
