//! Secrets. They are no flags, since everyone on the machine can read flags.

use std::path::Path;

use crate::reload::read_text_file;

/// A secret. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// The environment variables of the secrets.
pub(super) const SECRETS: [&str; 3] = ["X0_MSG_TOKEN_SECRET", "X0_MSG_API_KEYS", "X0_MSG_NATS_TOKEN"];

/// Secrets from the environment and from files.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// `X0_MSG_TOKEN_SECRET`: the secret of tokens that are signed with HS256.
    pub token: Option<Secret>,
    /// `X0_MSG_API_KEYS`: API keys as `name:key`, with spaces or commas between.
    pub api_keys: Option<Secret>,
    /// `X0_MSG_NATS_TOKEN`, or what the file of `--nats-token-file` holds: the token of the NATS servers.
    pub nats_token: Option<Secret>,
}

impl Secrets {
    /// The secrets in the environment of this process, and in the file with the token of NATS.
    ///
    /// # Errors
    /// The file cannot be read, or holds nothing.
    pub(super) fn read(nats_token_file: Option<&Path>) -> Result<Self, String> {
        let get = |name| std::env::var(name).ok().filter(|value| !value.is_empty()).map(Secret);
        let [token, api_keys, mut nats_token] = SECRETS.map(get);
        if let Some(path) = nats_token_file {
            let invalid =
                |reason: &dyn std::fmt::Display| format!("--nats-token-file {}: {reason}", path.display());
            let text = read_text_file(path).map_err(|error| invalid(&error))?;
            if text.trim().is_empty() {
                return Err(invalid(&"holds no token"));
            }
            nats_token = Some(Secret(text.trim().to_owned()));
        }
        Ok(Self { token, api_keys, nats_token })
    }

    /// The variables that hold secrets, of those that are set.
    #[must_use]
    pub fn variables() -> Vec<&'static str> {
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        SECRETS.into_iter().filter(is_set).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_a_secret() {
        let secrets = Secrets { token: Some(Secret("hunter2".to_owned())), ..Secrets::default() };
        assert!(!format!("{secrets:?}").contains("hunter2"));
    }

    #[test]
    fn a_token_of_nats_is_read_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = || Secrets::read(Some(&path));
        assert!(read().unwrap_err().starts_with("--nats-token-file "));
        std::fs::write(&path, " \n").unwrap();
        assert!(read().unwrap_err().ends_with("holds no token"));
        std::fs::write(&path, "t0ken\n").unwrap();
        assert_eq!(read().unwrap().nats_token, Some(Secret("t0ken".to_owned())));
    }
}
