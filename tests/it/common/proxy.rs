//! A TCP proxy that can stop passing bytes on, as a network that is cut.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// A proxy to one address, which ends with this.
pub struct Proxy {
    pub address: SocketAddr,
    /// Whether bytes pass to the target, and back from it.
    passing: watch::Sender<(bool, bool)>,
    task: AbortHandle,
}

impl Proxy {
    /// Listens on a free port of `ip`.
    pub async fn start(ip: IpAddr, target: SocketAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (passing, passes) = watch::channel((true, true));
        let task = tokio::spawn(async move {
            let mut pumps = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let passes = passes.clone();
                pumps.spawn(async move {
                    // Nobody listens there now: this connection ends too.
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = pump(near_in, far_out, passes.clone(), |(to, _)| *to) => {}
                        () = pump(far_in, near_out, passes, |(_, back)| *back) => {}
                    }
                });
                while pumps.try_join_next().is_some() {}
            }
        });
        Self { address, passing, task: task.abort_handle() }
    }

    /// Passes bytes on or not: to the target, and back from it. What waits passes later, as TCP sends again.
    pub fn pass(&self, to: bool, back: bool) {
        self.passing.send_replace((to, back));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes on until an end is closed.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut passes: watch::Receiver<(bool, bool)>,
    mine: impl Fn(&(bool, bool)) -> bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(count) = from.read(&mut buffer).await else { return };
        if passes.wait_for(&mine).await.is_err() || count == 0 {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
