//! What systemd is told (`sd_notify(3)`), if it has started this process. Elsewhere nothing of this has an effect.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told what this process does");
    }
}

/// The broker serves.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
}

/// The broker stops.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// This process is the service from now on.
pub(super) fn main_process(id: u32) {
    tell(&[NotifyState::MainPid(id)]);
}

/// Tells the service manager regularly that the process is alive, as often as it wants that. Dropping it ends that.
#[derive(Debug)]
pub struct Watchdog(Option<AbortHandle>);

impl Watchdog {
    /// Begins to tell. Call it within a tokio runtime: what does not run there cannot tell.
    #[must_use]
    pub fn start() -> Self {
        Self(sd_notify::watchdog_enabled().map(|limit| tokio::spawn(tell_alive(limit / 3)).abort_handle()))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(telling) = &self.0 {
            telling.abort();
        }
    }
}

async fn tell_alive(every: Duration) {
    let mut ticks = interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}
