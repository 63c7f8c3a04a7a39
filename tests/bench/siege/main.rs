//! The memory of the broker under attack, and what 100 good clients notice of it.
//!
//!     cargo bench --bench siege [-- PART_OF_A_NAME]
//!
//! Each attack of `attacks.rs` gets a release binary of its own with `--memory-budget 64MiB`. 100 clients (WebSockets, native
//! polls, x0 pages) send and receive all the time: 3 seconds before the attack, and while it goes on. The table has the
//! resident memory in MiB at rest, its peak with the good clients alone, its peak under attack and what is left of it 3
//! seconds after, and the messages of the good clients, those lost, how often a send was refused as `overloaded` and repeated,
//! and the time from the first send to the message.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use attacks::{ATTACKS, Attack};
use broker::Broker;
use good::Seen;

mod attacks;
mod broker;
mod good;
mod http;
#[path = "../memory.rs"]
mod memory;
mod wire;

const BEFORE: Duration = Duration::from_secs(3);
const DURING: Duration = Duration::from_secs(12);
const AFTER: Duration = Duration::from_secs(3);

async fn measure(attack: &Attack) -> Result<()> {
    let broker = Arc::new(Broker::start(attack.mode, attack.args)?);
    let rest = broker.memory("VmRSS");
    let seen = Arc::<Seen>::default();
    let mut clients = good::start(&broker, 100, &seen).await?;
    sleep(BEFORE).await;
    let good = broker.memory("VmHWM");
    broker.reset_peak()?;
    seen.reset();
    let attackers = (attack.start)(Arc::clone(&broker)).await?;
    sleep(DURING).await;
    drop(attackers);
    sleep(AFTER).await;
    let (peak, after) = (broker.memory("VmHWM"), broker.memory("VmRSS"));
    let (came, lost, refused, p50, p99) = seen.report();
    clients.shutdown().await;
    println!(
        "| {} | {rest:.0} | {good:.0} | {peak:.0} | {after:.0} | {came} | {lost} | {refused} | {p50:.1} | {p99:.1} |",
        attack.name
    );
    if broker.spent.load(Ordering::Relaxed) > 0 {
        println!("  the budget was spent");
    }
    let warning = broker.warning.lock().expect("not poisoned").clone();
    if !warning.is_empty() {
        println!("  last warning: {warning}");
    }
    Ok(())
}

#[tokio::main]
async fn main() {
    let part = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    println!(
        "| attack | at rest | good clients | peak | after | messages | lost | refused | p50 ms | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for attack in ATTACKS.iter().filter(|attack| attack.name.contains(&part)) {
        if let Err(error) = measure(attack).await {
            println!("  {}: {error:#}", attack.name);
        }
    }
}
