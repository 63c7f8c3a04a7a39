//! The token or API key that a command shows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::reload::read_text_file;

/// Longer than any token that a broker takes.
const MAX_TOKEN: usize = 32 << 10;

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
            Some(path) => Some(read_token(path)?),
            None => std::env::var("X0_MSG_TOKEN").ok(),
        };
        Ok(token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
    }
}

fn read_token(path: &Path) -> Result<String> {
    let token =
        read_text_file(path).with_context(|| format!("cannot read --token-file {}", path.display()))?;
    ensure!(!token.trim().is_empty(), "--token-file {} is empty", path.display());
    ensure!(token.len() <= MAX_TOKEN, "--token-file {} holds no token: it is too long", path.display());
    Ok(token)
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
        for (content, token) in [(" a.b.c\n", "a.b.c"), ("d.e.f", "d.e.f")] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(credential.read().unwrap().as_deref(), Some(token));
        }
        for (content, reason) in [("\n".to_owned(), "is empty"), ("x".repeat(100_000), "too long")] {
            std::fs::write(&path, content).unwrap();
            assert!(credential.read().unwrap_err().to_string().contains(reason), "{reason}");
        }
    }
}
