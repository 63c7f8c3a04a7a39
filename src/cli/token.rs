//! `token`: makes a token for development.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use serde::Serialize;

use crate::cli::say::{note, print};
use crate::cli::time::seconds_or_units;
use crate::identity::sign;
use crate::message::{SessionId, UserId, taken_name};
use crate::reload::read_file;

/// Settings of `token`.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// File with the secret (HS256) or the private key (PEM; RS256, ES256 or EdDSA) that signs
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,

    /// Create the file with a new secret if it does not exist
    #[arg(long)]
    new_key: bool,

    /// User of the token (`sub`)
    #[arg(long, value_name = "USER")]
    user: String,

    /// Session of the token (`sid`). Without it the server creates a session
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,

    /// How long the token is valid: seconds, or numbers with units, like 90, 12h or 1d
    #[arg(long, allow_negative_numbers = true, value_name = "TIME", default_value = "1h", value_parser = seconds_or_units)]
    ttl: Duration,

    /// Address that the token may send to, like topic:news, user:* or *. May be given several times. Without it the token
    /// may send to all users, to all handles and to the sessions of its own user, and to no topic and no backend
    #[arg(long, value_name = "ADDRESS")]
    send: Vec<String>,

    /// Topic that the token may read, like news or room/*. May be given several times. Without it the token may read no
    /// topic
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,

    /// Topic of which the token may see who reads it, like news or room/*. May be given several times. Without it the token
    /// may see that of no topic
    #[arg(long, value_name = "TOPIC")]
    presence: Vec<String>,

    /// Audience of the token (`aud`)
    #[arg(long, value_name = "NAME")]
    audience: Option<String>,

    /// Issuer of the token (`iss`)
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,

    /// Id of the key (`kid`)
    #[arg(long, value_name = "NAME")]
    kid: Option<String>,
}

#[derive(Serialize)]
struct NewClaims {
    sub: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    send: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    topics: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    presence: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
}

/// Prints a token.
///
/// # Errors
/// A name is invalid, or the key cannot be read or used.
pub fn token(args: TokenArgs) -> Result<()> {
    print(make_token(args)?)
}

fn make_token(args: TokenArgs) -> Result<String> {
    taken_name(&args.user, UserId::new).context("--user")?;
    let session = args.session.as_deref().map(|session| taken_name(session, SessionId::new));
    session.transpose().context("--session")?;
    ensure!(!args.ttl.is_zero(), "--ttl must be longer than 0: the token would have expired at once");
    let path = &args.key_file;
    let key = match read_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && args.new_key => new_key(path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("--key-file {} does not exist; --new-key creates it", path.display())
        }
        read => read.with_context(|| format!("cannot read --key-file {}", path.display()))?,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = NewClaims {
        sub: args.user,
        sid: args.session,
        iat: now.as_secs(),
        exp: now.saturating_add(args.ttl).as_secs(),
        send: args.send,
        topics: args.topic,
        presence: args.presence,
        aud: args.audience,
        iss: args.issuer,
    };
    sign(&key, args.kid, &claims).map_err(|reason| anyhow!("--key-file {}: {reason}", path.display()))
}

/// Creates a file with a new secret. Only its owner can read it.
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
        .with_context(|| format!("cannot create {}", path.display()))?;
    note(format_args!(
        "created {} with a new secret; the server needs it as --token-key-file",
        path.display()
    ));
    Ok(secret.into_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::identity::verify_with_secret;

    #[derive(Debug, Parser)]
    struct Token {
        #[command(flatten)]
        args: TokenArgs,
    }

    fn args(key_file: &Path, more: &[&str]) -> TokenArgs {
        let key_file = key_file.to_str().unwrap();
        Token::parse_from([&["token", "--key-file", key_file], more].concat()).args
    }

    #[test]
    fn a_token_of_a_new_key_is_valid_and_has_its_claims() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let flags = ["--new-key", "--user", "ann", "--session", "A", "--send", "topic:*", "--topic", "news"];
        let flags = [&flags[..], &["--presence", "room/*"]].concat();
        let token = make_token(args(&path, &flags)).unwrap();
        let claims = verify_with_secret(&std::fs::read(&path).unwrap(), &token).unwrap();
        assert_eq!((claims.user.as_str(), claims.session.unwrap().as_str()), ("ann", "A"));
        assert!(claims.send.is_some() && claims.topics.unwrap().allow("news"));
        assert!(claims.presence.unwrap().allow("room/1"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = make_token(args(&path, &flags)).unwrap();
        assert!(verify_with_secret(&std::fs::read(&path).unwrap(), &again).is_some(), "the key is kept");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let error = |flags: &[&str]| format!("{:#}", make_token(args(&path, flags)).unwrap_err());
        assert!(error(&["--user", "ann"]).contains("--new-key creates it"));
        assert!(error(&["--user", ""]).contains("--user: must not be empty"));
        assert!(error(&["--user", "ann", "--session", ""]).contains("--session"));
        for name in [
            ["--user", "h-BwcHBwcHBwcHBwcHBwcHBw"].as_slice(),
            &["--user", "ann", "--session", "h-BwcHBwcHBwcHBwcHBwcHBw"],
        ] {
            assert!(error(name).contains("shape of a handle"), "no broker takes it");
        }
        assert!(error(&["--user", "ann", "--ttl", "0"]).contains("--ttl"));
        std::fs::write(&path, "short").unwrap();
        assert!(error(&["--user", "ann"]).contains("at least 32"));
    }
}
