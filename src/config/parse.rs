//! Parsers of single settings. An error says what the setting should be.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use axum::http::uri::Authority;
use ipnet::IpNet;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// A time that something is waited for.
pub(super) fn wait(text: &str) -> Result<Duration, String> {
    time(text, (Duration::from_millis(10), "10ms"), (30 * DAY, "30d"))
}

/// A time that something is kept for.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    time(text, (Duration::from_millis(1), "1ms"), (36_500 * DAY, "36500d"))
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A time within bounds, both with how they are written.
fn time(text: &str, least: (Duration, &str), most: (Duration, &str)) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time < least.0 || time > most.0 => Err(format!("must be from {} to {}", least.1, most.1)),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write a number and a unit, like 10s, 500ms or 24h")),
    }
}

/// Bytes, as a number or with a unit: a binary one of IEC 80000-13, or a decimal one of the SI.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let invalid = || "must be a number of bytes, or one with KiB, MiB or GiB, or kB, MB or GB".to_owned();
    let factor = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(invalid()),
    };
    let bytes = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(factor));
    bytes.ok_or_else(invalid)
}

pub(super) fn payload_size(text: &str) -> Result<usize, String> {
    const MOST: usize = 16 << 20;
    match size(text) {
        Ok(bytes) if (1024..=MOST).contains(&bytes) => Ok(bytes),
        Ok(_) => Err(format!("must be from 1KiB to 16MiB, in bytes from 1024 to {MOST}")),
        Err(reason) => Err(reason),
    }
}

/// What is stored has room for some messages.
pub(super) fn store_size(text: &str) -> Result<usize, String> {
    const LEAST: usize = 64 << 10;
    match size(text)? {
        bytes if bytes < LEAST => Err("must be at least 64KiB".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A budget has room for some large messages.
pub(super) fn budget_size(text: &str) -> Result<usize, String> {
    const LEAST: usize = 1 << 20;
    match size(text)? {
        bytes if bytes < LEAST => Err("must be at least 1MiB".to_owned()),
        bytes => Ok(bytes),
    }
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "must be a whole number above 0, like 100".to_owned())
}

/// Levels of the log, also of single modules.
pub(super) fn levels(text: &str) -> Result<Targets, String> {
    // A word alone would be a module, of which all is logged: a misspelt level would silence everything else.
    let is_level = |item: &str| item.contains('=') || item.trim().parse::<LevelFilter>().is_ok();
    text.parse().ok().filter(|_| text.split(',').all(is_level)).ok_or_else(|| {
        "must be levels, like debug, or info,x0_msg_server::broker=trace; a level is off, error, warn, info, debug or trace"
            .to_owned()
    })
}

/// A part of the names of streams and subjects of NATS.
#[cfg(feature = "nats")]
pub(super) fn name_part(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match (1..=32).contains(&text.len()) && text.bytes().all(is_allowed) {
        true => Ok(text.to_owned()),
        false => Err("1 to 32 letters, digits, hyphens and underscores".to_owned()),
    }
}

/// The prefix of a file that systemd has put into the directory of a service's credentials.
const CREDENTIAL: &str = "credential:";

/// A file that is read. `credential:NAME` is a credential of the service, as `LoadCredential=NAME:…` of systemd sets it.
pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    credential(text, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref())
}

fn credential(text: &str, directory: Option<&OsStr>) -> Result<PathBuf, String> {
    let Some(name) = text.strip_prefix(CREDENTIAL) else {
        return if text.is_empty() { Err("must name a file".to_owned()) } else { Ok(text.into()) };
    };
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err("must name a credential after credential:, as LoadCredential= of systemd does".to_owned());
    }
    match directory {
        Some(directory) => Ok(Path::new(directory).join(name)),
        None => Err(
            "names a credential, and CREDENTIALS_DIRECTORY is not set: systemd sets it for a service with \
                     LoadCredential="
                .to_owned(),
        ),
    }
}

/// A number that may be 0.
pub(super) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "must be a whole number, like 100; 0 means no limit".to_owned())
}

pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from).ok();
    let invalid = || "must be an address or a network, like 10.0.0.1 or 10.0.0.0/8".to_owned();
    text.parse().ok().or_else(address).ok_or_else(invalid)
}

/// An origin as browsers write it (RFC 6454 section 6.1): scheme, host, and a port that is not the scheme's own.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let invalid = || "must be * or an origin, like https://app.example or http://localhost:3000".to_owned();
    if text == "*" {
        return Ok(text.to_owned());
    }
    let text = text.trim_end_matches('/').to_ascii_lowercase();
    let (scheme, authority) = text.split_once("://").ok_or_else(invalid)?;
    if !matches!(scheme, "http" | "https") || authority.is_empty() || authority.contains(['/', '@', '?', '#'])
    {
        return Err(invalid());
    }
    // A browser names one host, in ASCII: anything else would allow nothing.
    check_name(authority)?;
    let own = if scheme == "https" { ":443" } else { ":80" };
    Ok(format!("{scheme}://{}", authority.strip_suffix(own).unwrap_or(authority)))
}

/// Whether requests can name a host like this.
fn check_name(authority: &str) -> Result<(), String> {
    if authority.contains('*') {
        return Err("a part of a name cannot be *; name each host, or * alone for all".to_owned());
    }
    if !authority.is_ascii() {
        return Err("must be in ASCII, as browsers write it, like xn--mnchen-3ya.example".to_owned());
    }
    let parsed: Option<Authority> = authority.parse().ok();
    let port = parsed.as_ref().and_then(|parsed| authority.strip_prefix(parsed.host()));
    match (port, parsed.as_ref().and_then(Authority::port_u16)) {
        (Some(""), _) | (Some(_), Some(1..)) => Ok(()),
        _ => Err("must have a host, and a port from 1 to 65535 or none".to_owned()),
    }
}

/// A name that a token may have. An empty one would refuse every token.
pub(super) fn claim(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("must not be empty".to_owned()),
        name => Ok(name.to_owned()),
    }
}

/// A host without scheme and port.
pub(super) fn host(text: &str) -> Result<String, String> {
    let bare = text.trim_start_matches('[').trim_end_matches([']', '.']);
    let is_address = bare.parse::<IpAddr>().is_ok();
    if bare.is_empty() || !is_address && bare.contains([':', '/', '@', '?', '#', ' ']) {
        return Err("must be * or a host without scheme and port, like msg.example".to_owned());
    }
    if bare != "*" && !is_address {
        check_name(bare)?;
    }
    // An address of IPv6 has brackets in an authority.
    let host = if is_address && bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
    Ok(host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_neither_scheme_nor_port() {
        assert_eq!(host("Msg.example."), Ok("msg.example".to_owned()));
        assert_eq!(host("192.0.2.1"), Ok("192.0.2.1".to_owned()));
        for address in ["2001:DB8::1", "[2001:db8::1]"] {
            assert_eq!(host(address), Ok("[2001:db8::1]".to_owned()));
        }
        assert_eq!(host("*"), Ok("*".to_owned()));
        for wrong in ["", "https://msg.example", "msg.example:8080", "msg.example/x", "u@msg.example", "a b"]
        {
            assert!(host(wrong).unwrap_err().contains("like msg.example"), "{wrong}");
        }
        for (wrong, reason) in
            [("*.example", "cannot be *"), ("münchen.example", "ASCII"), ("a\\b", "a host")]
        {
            assert!(host(wrong).unwrap_err().contains(reason), "{wrong}");
        }
    }

    #[test]
    fn origins_are_as_browsers_write_them() {
        assert_eq!(origin("https://App.example/"), Ok("https://app.example".to_owned()));
        assert_eq!(origin("https://app.example:443"), Ok("https://app.example".to_owned()));
        assert_eq!(origin("http://localhost:3000"), Ok("http://localhost:3000".to_owned()));
        assert_eq!(origin("*"), Ok("*".to_owned()));
        for wrong in ["", "app.example", "ftp://x", "https://", "https://x/path", "https://u@x"] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
        for (wrong, reason) in [
            ("https://*.example", "cannot be *"),
            ("https://münchen.example", "ASCII"),
            ("https://x:port", "a port from 1"),
            ("https://x:99999", "a port from 1"),
            ("https://x:0", "a port from 1"),
        ] {
            assert!(origin(wrong).unwrap_err().contains(reason), "{wrong}");
        }
    }

    #[test]
    fn claims_are_not_empty() {
        assert_eq!(claim(" shop "), Ok("shop".to_owned()));
        assert!(claim(" ").is_err());
    }

    #[test]
    fn networks_may_be_single_addresses() {
        assert_eq!(network("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(network("fd00::/8").unwrap().to_string(), "fd00::/8");
        assert!(network("example.org").is_err());
    }

    #[test]
    fn times_need_a_unit_and_are_within_their_bounds() {
        assert_eq!(wait("1m 30s"), Ok(Duration::from_secs(90)));
        for (least, most) in [("10ms", "30d"), ("500ms", "24h")] {
            assert!(wait(least).is_ok() && wait(most).is_ok());
        }
        for wrong in ["0s", "1ns", "9ms", "31d", "5000000y"] {
            assert_eq!(wait(wrong), Err("must be from 10ms to 30d".to_owned()), "{wrong}");
        }
        assert!(lifetime("1ms").is_ok() && lifetime("36500d").is_ok());
        for wrong in ["0s", "1ns", "36501d", "5000000y"] {
            assert_eq!(lifetime(wrong), Err("must be from 1ms to 36500d".to_owned()), "{wrong}");
        }
        for wrong in ["10", "", "-1s", "soon"] {
            assert!(wait(wrong).unwrap_err().contains("like 10s"), "{wrong}");
        }
    }

    #[test]
    fn sizes_may_have_a_unit() {
        for (text, bytes) in
            [("0", 0), ("7", 7), ("7B", 7), ("64MiB", 64 << 20), ("3 KiB", 3 << 10), ("1GiB", 1 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, bytes) in [("64MB", 64_000_000), ("1 kB", 1_000), ("1KB", 1_000), ("2GB", 2_000_000_000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "MiB", "-1", "1.5MiB", "1 M", "64mib", "99999999999GiB"] {
            assert!(size(wrong).unwrap_err().contains("KiB, MiB or GiB"), "{wrong}");
        }
    }

    #[test]
    fn a_file_may_be_a_credential_of_systemd() {
        let directory = Some(OsStr::new("/run/credentials/x0-msg-server.service"));
        assert_eq!(credential("keys.toml", directory), Ok("keys.toml".into()));
        let path = Path::new("/run/credentials/x0-msg-server.service/api-keys");
        assert_eq!(credential("credential:api-keys", directory), Ok(path.into()));
        assert!(credential("credential:api-keys", None).unwrap_err().contains("CREDENTIALS_DIRECTORY"));
        for wrong in ["credential:", "credential:../x", "credential:a/b", ""] {
            assert!(credential(wrong, directory).unwrap_err().contains("must name"), "{wrong}");
        }
    }

    #[test]
    fn numbers_are_within_their_bounds() {
        assert_eq!(payload_size("1024"), Ok(1024));
        assert_eq!(payload_size("16777216"), Ok(16 << 20));
        for wrong in ["1023", "16777217", "17MB"] {
            assert!(payload_size(wrong).unwrap_err().contains("from 1024 to 16777216"), "{wrong}");
        }
        for wrong in ["-1", "", "1 apple"] {
            assert!(payload_size(wrong).unwrap_err().contains("a number of bytes"), "{wrong}");
        }
        assert_eq!(payload_size("2MiB"), Ok(2 << 20));
        assert_eq!((budget_size("1MiB"), budget_size("1048576")), (Ok(1 << 20), Ok(1 << 20)));
        assert!(budget_size("1023KiB").unwrap_err().contains("at least"));
        assert_eq!(at_least_one("1"), Ok(1));
        for wrong in ["0", "-1", "one"] {
            assert!(at_least_one(wrong).unwrap_err().contains("like 100"), "{wrong}");
        }
        assert_eq!((number("0"), number("7")), (Ok(0_u32), Ok(7_u32)));
        for wrong in ["-1", "", "4294967296", "1e3"] {
            assert!(number::<u32>(wrong).unwrap_err().contains("like 100"), "{wrong}");
        }
        assert_eq!(store_size("64KiB"), Ok(64 << 10));
        assert!(store_size("65535").unwrap_err().contains("64KiB"));
        assert!(store_size("5 apples").is_err());
    }
}
