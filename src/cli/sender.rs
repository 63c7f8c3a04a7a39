//! The name under which this account sends a message with an id of its own.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Files that tell machines apart.
const MACHINE: [&str; 2] = ["/etc/machine-id", "/proc/sys/kernel/hostname"];

/// A name that is the same in each run of this account on this machine. So a broker in `open` mode knows a retry by its id.
/// Receivers see the name: it is a digest, which tells nothing about account and machine.
pub(super) fn account_name() -> String {
    let machine = MACHINE.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    name_of(&machine, rustix::process::geteuid().as_raw())
}

fn name_of(machine: &[String], account: u32) -> String {
    let digest = digest(&SHA256, format!("{machine:?} {account}").as_bytes());
    format!("cli-{}", URL_SAFE_NO_PAD.encode(&digest.as_ref()[..12]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_keeps_its_name_and_another_one_has_another() {
        assert_eq!(account_name(), account_name());
        let name = |machine: &str, account| name_of(&[machine.to_owned(), String::new()], account);
        assert_eq!(name("a", 1).len(), "cli-".len() + 16);
        assert!(name("a", 1) != name("a", 2) && name("a", 1) != name("b", 1));
    }
}
