//! Which settings a running broker takes over.

use crate::config::{Config, Setting};

/// Names the settings that a reload takes over, with their fields.
macro_rules! live {
    ($($key:literal => $($field:ident).+,)+) => {
        /// The settings that a reload takes over.
        const LIVE: &[&str] = &[$($key),+];

        /// Takes one setting over.
        fn take(running: &mut Config, wanted: &Config, key: &str) {
            match key {
                $($key => running.$($field).+.clone_from(&wanted.$($field).+),)+
                _ => unreachable!("only settings of LIVE are taken over"),
            }
        }
    };
}

live! {
    "log-level" => log_level,
    "token-key-file" => access.token_key_file,
    "token-jwks-url" => access.token_jwks_url,
    "token-jwks-refresh" => access.token_jwks_refresh,
    "token-jwks-max-age" => access.token_jwks_max_age,
    "token-audience" => access.token_audience,
    "token-issuer" => access.token_issuer,
    "api-key-file" => access.api_key_file,
    "allow-origin" => access.allow_origin,
    "legacy-allow-origin" => access.legacy_allow_origin,
    "host" => access.host,
    "tls-cert" => access.tls_cert,
    "tls-key" => access.tls_key,
    "trust-proxy" => access.trust_proxy,
    "proxy-header" => access.proxy_header,
    "send-rate" => access.send_rate,
    "send-burst" => access.send_burst,
    "send-bytes-rate" => access.send_bytes_rate,
    "connections-per-address" => access.connections_per_address,
}

/// What a reload changes.
#[derive(Debug)]
pub(crate) struct Reload {
    /// The settings that are in force then.
    pub config: Config,
    /// The names of the settings that are taken over.
    pub taken: Vec<String>,
    /// The names of the settings that have changed and need a restart.
    pub refused: Vec<String>,
}

impl Reload {
    /// The change from the settings in force to those that are wanted.
    pub(crate) fn new(running: &Config, wanted: &Config) -> Self {
        let mut config = running.clone();
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for key in running.sources.changes(&wanted.sources) {
            if LIVE.contains(&key) && !needs_restart(running, wanted, key) {
                take(&mut config, wanted, key);
                config.sources.take(&wanted.sources, key);
                taken.push(key.to_owned());
            } else {
                refused.push(key.to_owned());
            }
        }
        Self { config, taken, refused }
    }

    /// Whether one of these settings is taken over.
    pub(crate) fn takes(&self, keys: &[&str]) -> bool {
        self.taken.iter().any(|taken| keys.contains(&taken.as_str()))
    }
}

/// Whether this change of a setting would need other routes: `*`, which allows all, and TLS come and go with a restart only.
fn needs_restart(running: &Config, wanted: &Config, key: &str) -> bool {
    let all = |config: &Config| match config.sources.get(key) {
        Some(Setting { values, .. }) => values.iter().any(|value| value == "*"),
        None => false,
    };
    match key {
        "allow-origin" | "host" => all(running) != all(wanted),
        "tls-cert" | "tls-key" => running.access.tls_cert.is_some() != wanted.access.tls_cert.is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::{Only, load};

    fn config(args: &[&str]) -> Config {
        let args = [&["x0-msg-server"], args].concat().into_iter().map(Into::into);
        let (only, sources) = load::<Only>(args).unwrap();
        Config { sources, ..only.config }
    }

    #[test]
    fn what_can_change_is_taken_over_and_the_rest_stays() {
        let running = config(&["--send-rate", "1", "--heartbeat", "20s"]);
        let wanted =
            config(&["--send-rate", "2", "--heartbeat", "30s", "--allow-origin", "https://a.example"]);
        let reload = Reload::new(&running, &wanted);
        assert_eq!(reload.taken, ["allow-origin", "send-rate"]);
        assert_eq!(reload.refused, ["heartbeat"]);
        assert_eq!((reload.config.access.send_rate, reload.config.heartbeat), (Some(2), running.heartbeat));
        // What was refused is refused again, and nothing else has changed.
        let again = Reload::new(&reload.config, &wanted);
        assert_eq!((again.taken.len(), again.refused), (0, reload.refused));
    }

    #[test]
    fn all_origins_and_tls_come_and_go_with_a_restart() {
        let tls = ["--tls-cert", "a", "--tls-key", "b"];
        for (running, wanted) in [
            (&[][..], &["--allow-origin", "*"][..]),
            (&["--host", "*"], &["--host", "msg.example"]),
            (&[], &tls),
            (&tls, &[]),
        ] {
            let reload = Reload::new(&config(running), &config(wanted));
            assert!(reload.taken.is_empty() && !reload.refused.is_empty(), "{reload:?}");
        }
        let reload = Reload::new(&config(&tls), &config(&["--tls-cert", "c", "--tls-key", "b"]));
        assert_eq!(
            (reload.taken, reload.config.access.tls_cert),
            (vec!["tls-cert".to_owned()], Some(PathBuf::from("c")))
        );
    }

    #[test]
    fn each_name_is_that_of_a_setting() {
        let config = config(&[]);
        assert!(LIVE.iter().all(|key| config.sources.get(key).is_some()));
    }
}
