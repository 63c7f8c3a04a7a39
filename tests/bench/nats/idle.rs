//! Sessions that get nothing.

use std::process::Command;
use std::time::Duration;

use x0_msg_server::engine::{Register, Registrar};
use x0_msg_server::message::{SessionId, UserId};

use crate::servers::Servers;
use crate::{Node, mailbox};

const READERS: usize = 50_000;
const SESSIONS: usize = 100_000;

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux has the field");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Reads sessions in this process, and prints what each takes.
pub(crate) async fn here(node: &Node) {
    let mut readers = Vec::new();
    let mut before = 0.0;
    // The first ones pay for what all share.
    for n in 0..READERS + 1_000 {
        if n == 1_000 {
            before = resident();
        }
        let address = mailbox(&format!("session number {n}"));
        let mut reader = node.reader(&address);
        reader.ready().await.expect("it can be read");
        readers.push(reader);
    }
    println!(
        "{:.2} KiB for each of {READERS} sessions that are read",
        (resident() - before) / READERS as f64
    );
}

/// The same in processes of their own, with the engine on NATS and the embedded one.
pub(crate) fn both(servers: &Servers) {
    let this = std::env::current_exe().expect("a program");
    for (name, argument) in [("embedded", "idle-here".to_owned()), ("NATS", servers.url())] {
        print!("{name}: ");
        std::io::Write::flush(&mut std::io::stdout()).expect("it prints");
        assert!(Command::new(&this).arg(argument).status().expect("it runs").success());
    }
}

/// Registers sessions, and prints what the servers hold.
pub(crate) async fn sessions(node: &Node, servers: &Servers) {
    let (before, here) = (servers.memory(), resident());
    for group in 0..SESSIONS / 100 {
        let each = (0..100).map(|n| {
            let session = SessionId::new(&format!("session number {}", group * 100 + n)).expect("a name");
            let user = UserId::new(&format!("user {}", group * 100 + n)).ok();
            let (ttl, by) = (Duration::from_secs(86_400), Registrar::Backend { proof: false });
            node.engine.register(&Register { session, user, ttl, by })
        });
        for commit in each.collect::<Vec<_>>() {
            commit.await.expect("it is registered");
        }
    }
    println!(
        "{SESSIONS} registered sessions: {:.0} MiB more at the servers, {:.0} MiB here",
        servers.memory() - before,
        (resident() - here) / 1024.0
    );
    println!("subjects of each stream: {}", servers.subjects());
}
