//! The token or API key that a command shows.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

/// Where the token or the API key comes from.
#[derive(Debug, Clone, Args)]
pub(super) struct CredentialArgs {
    /// File with a token or an API key; X0_MSG_TOKEN may hold it instead
    #[arg(long, env = "X0_MSG_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl CredentialArgs {
    /// The token or the API key, if there is one. A file is read each time, so that it may be renewed.
    pub(super) fn read(&self) -> Result<Option<String>> {
        let token = match &self.token_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read --token-file {}", path.display()))?,
            ),
            None => std::env::var("X0_MSG_TOKEN").ok(),
        };
        Ok(token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_read_each_time_and_trimmed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let credential = CredentialArgs { token_file: Some(path.clone()) };
        assert!(credential.read().unwrap_err().to_string().contains("--token-file"));
        for (content, token) in [(" a.b.c\n", Some("a.b.c")), ("d.e.f", Some("d.e.f")), ("\n", None)] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(credential.read().unwrap().as_deref(), token);
        }
    }
}
