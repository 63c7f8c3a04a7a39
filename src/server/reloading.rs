//! Takes changed settings over in a running server.

use std::sync::{Arc, Mutex};

use tokio_rustls::rustls::ServerConfig;

use crate::config::{Access, Config, Reload};
use crate::descriptors;
use crate::identity::Identity;
use crate::limits::{ConnectionLimiter, Rates};
use crate::reload::{Current, SetupError};
use crate::reloadable::Reloadable;
use crate::server::entrance::limits_of_addresses;
use crate::sync::lock;
use crate::tls;

/// The settings with which keys of clients are checked.
const KEYS: [&str; 7] = [
    "token-key-file",
    "token-jwks-url",
    "token-jwks-refresh",
    "token-jwks-max-age",
    "token-audience",
    "token-issuer",
    "api-key-file",
];

/// Takes changed settings over in a running server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reloader(Arc<Parts>);

/// What a reload changes.
#[derive(Debug)]
pub(super) struct Parts {
    /// The settings in force. Held for one reload.
    pub(super) config: Mutex<Config>,
    pub(super) access: Reloadable<Access>,
    pub(super) identity: Arc<Identity>,
    pub(super) rates: Arc<Rates>,
    pub(super) tls: Option<Reloadable<Current<ServerConfig>>>,
    pub(super) connection_limiter: ConnectionLimiter,
    pub(super) socket_limiter: ConnectionLimiter,
}

/// What a reload has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// The names of the settings that are in force now.
    pub taken: Vec<String>,
    /// The names of the settings that have changed and need a restart.
    pub refused: Vec<String>,
}

impl Reloader {
    pub(super) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Takes these settings over, as far as a running server can. It reads keys and certificates, so it may wait for the disk. Call
    /// it within a tokio runtime.
    ///
    /// # Errors
    /// A key or a certificate cannot be used. Then nothing has changed.
    pub fn reload(&self, wanted: &Config) -> Result<Reloaded, SetupError> {
        let Parts { config, access, identity, rates, tls, connection_limiter, socket_limiter } = &*self.0;
        let mut running = lock(config);
        let reload = Reload::new(&running, wanted);
        let new = &reload.config.access;
        // First all that can fail.
        let keys = match reload.takes(&KEYS) {
            true => Some(identity.prepare(&running.access, new)?),
            false => None,
        };
        let certificate = match (tls, &new.tls_cert, &new.tls_key) {
            (Some(tls), Some(cert), Some(key)) if reload.takes(&["tls-cert", "tls-key"]) => {
                Some((tls, tls::server_config(cert, key)?))
            }
            _ => None,
        };
        if let Some(keys) = keys {
            identity.replace(keys);
        }
        if let Some((tls, certificate)) = certificate {
            tls.set(certificate);
        }
        if reload.takes(&["send-rate", "send-burst", "send-bytes-rate"]) {
            rates.set(new.rate(), new.bytes_rate());
        }
        if reload.takes(&["connections-per-address"]) {
            let (requests, sockets) = limits_of_addresses(new, descriptors::for_connections());
            connection_limiter.set_limit(requests.limit());
            socket_limiter.set_limit(sockets.limit());
        }
        access.set(new.clone());
        let Reload { config, taken, refused } = reload;
        *running = config;
        Ok(Reloaded { taken, refused })
    }
}
