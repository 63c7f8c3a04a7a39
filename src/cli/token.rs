//! `token`: makes a token, for development.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Serialize;

use crate::identity::sign;
use crate::message::{SessionId, UserId};

/// Settings of `token`.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// Secret (HS256) or private key (PEM; RS256, ES256 or EdDSA) to sign with
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,

    /// Make the file with a new secret if it is not there
    #[arg(long)]
    new_key: bool,

    /// Who the token is for (`sub`)
    #[arg(long, value_name = "USER")]
    user: String,

    /// Which session it is for (`sid`); without it the server makes one
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,

    /// How long it is good
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,

    /// Where it allows to send, like topic:news, user:* or *; to all users and sessions if this is not given
    #[arg(long, value_name = "ADDRESS")]
    send: Vec<String>,

    /// Topic it allows to read, like news or room/*; none if this is not given
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,

    /// Who it is meant for (`aud`)
    #[arg(long, value_name = "NAME")]
    audience: Option<String>,

    /// Who it comes from (`iss`)
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,

    /// Name of the key (`kid`)
    #[arg(long, value_name = "NAME")]
    kid: Option<String>,
}

#[derive(Serialize)]
struct Claims {
    sub: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    send: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    topics: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
}

/// Prints a token.
///
/// # Errors
/// The key cannot be used.
pub fn token(args: TokenArgs) -> Result<()> {
    UserId::new(&args.user).context("--user")?;
    args.session.as_deref().map(SessionId::new).transpose().context("--session")?;
    let path = &args.key_file;
    let key = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && args.new_key => new_key(path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("--key-file {} is not there; --new-key makes it", path.display())
        }
        read => read.with_context(|| format!("cannot read --key-file {}", path.display()))?,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = Claims {
        sub: args.user,
        sid: args.session,
        iat: now.as_secs(),
        exp: now.saturating_add(args.ttl).as_secs(),
        send: args.send,
        topics: args.topic,
        aud: args.audience,
        iss: args.issuer,
    };
    let token =
        sign(&key, args.kid, &claims).map_err(|why| anyhow!("--key-file {}: {why}", path.display()))?;
    println!("{token}");
    Ok(())
}

/// Makes a secret that only its owner can read.
fn new_key(path: &Path) -> Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut bits = [0_u8; 32];
    getrandom::fill(&mut bits)?;
    let secret: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| writeln!(file, "{secret}"))
        .with_context(|| format!("cannot make {}", path.display()))?;
    eprintln!("made {}: a secret, for --token-key-file", path.display());
    Ok(secret.into_bytes())
}
