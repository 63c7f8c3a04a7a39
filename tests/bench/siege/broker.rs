//! The release binary under siege: its address, its credentials and its memory.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::generate_simple_self_signed;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const SECRET: &str = "the secret that all tokens of this siege are signed with";

/// An API key that may do everything.
pub(crate) const KEY: &str = "key-of-the-siege-0123456789abcdef0123456789abcdef";

/// A connection, with or without TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How a broker is started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    /// `open`, with TLS, for HTTP/2.
    Tls,
    /// `--auth token`.
    Token,
}

/// A running broker, killed when dropped.
pub(crate) struct Broker {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) mode: Mode,
    trusted: CertificateDer<'static>,
    /// Lines of its log that say that the budget is spent.
    pub(crate) spent: Arc<AtomicU64>,
    /// The last warning of its log.
    pub(crate) warning: Arc<Mutex<String>>,
    _dir: TempDir,
}

impl Drop for Broker {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn certificate(dir: &Path) -> Result<CertificateDer<'static>> {
    let made = generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem())?;
    std::fs::write(dir.join("cert.pem"), made.cert.pem())?;
    Ok(made.cert.der().clone())
}

impl Broker {
    pub(crate) fn start(mode: Mode, args: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let trusted = certificate(dir.path())?;
        std::fs::write(dir.path().join("secret"), SECRET)?;
        std::fs::write(
            dir.path().join("keys.toml"),
            format!("[[key]]\nname = \"all\"\nkey = \"{KEY}\"\nfrom = \"shop\"\n"),
        )?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_x0-msg-server"));
        command.args(["--listen", "127.0.0.1:0", "--memory-budget", "64MiB", "--data-dir"]);
        command.arg(dir.path().join("store")).args(args).stderr(Stdio::piped());
        let file = |name| dir.path().join(name);
        match mode {
            Mode::Open => {}
            Mode::Tls => {
                command.arg("--tls-cert").arg(file("cert.pem")).arg("--tls-key").arg(file("key.pem"));
            }
            Mode::Token => {
                command.args(["--auth", "token", "--token-key-file"]).arg(file("secret"));
                command.arg("--api-key-file").arg(file("keys.toml"));
            }
        }
        let mut child = command.spawn()?;
        let mut log = BufReader::new(child.stderr.take().context("piped")?);
        let address = ready(&mut log)?;
        let (spent, warning) = (Arc::<AtomicU64>::default(), Arc::<Mutex<String>>::default());
        let (count, last) = (Arc::clone(&spent), Arc::clone(&warning));
        std::thread::spawn(move || {
            for line in log.lines().map_while(std::io::Result::ok) {
                count.fetch_add(line.contains("memory budget is spent").into(), Ordering::Relaxed);
                if line.contains("WARN") || line.contains("ERROR") {
                    *last.lock().expect("not poisoned") = line;
                }
            }
        });
        Ok(Self { child, address, mode, trusted, spent, warning, _dir: dir })
    }

    /// A field of its memory, in MiB.
    pub(crate) fn memory(&self, field: &str) -> f64 {
        crate::memory::kib(&self.child, field) / 1024.0
    }

    /// The peak is counted from now on (proc(5), `clear_refs`).
    pub(crate) fn reset_peak(&self) -> Result<()> {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").context("the peak can be reset")
    }

    /// A TCP connection of a client at this address.
    async fn tcp(&self, from: &str) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from.parse()?, 0))?;
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection of a client at this address: for HTTP/2 if `alpn` says so.
    pub(crate) async fn connect(&self, from: &str, alpn: &str) -> Result<Box<dyn Stream>> {
        let stream = self.tcp(from).await?;
        if self.mode != Mode::Tls {
            return Ok(Box::new(stream));
        }
        let mut roots = RootCertStore::empty();
        roots.add(self.trusted.clone())?;
        let config = ClientConfig::builder_with_provider(default_provider().into());
        let mut config =
            config.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        Ok(Box::new(tls.connect(ServerName::try_from("localhost")?, stream).await?))
    }

    /// A connection whose system buffers few bytes that are not read.
    pub(crate) async fn connect_narrow(&self, from: &str) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        socket.bind(SocketAddr::new(from.parse()?, 0))?;
        Ok(socket.connect(self.address).await?)
    }

    /// The bearer of a user for a session; none where names prove nothing.
    pub(crate) fn bearer(&self, user: &str, session: &str) -> Option<String> {
        if self.mode != Mode::Token {
            return None;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let claims =
            json!({ "sub": user, "sid": session, "exp": now + 3600, "send": ["*"], "topics": ["*"] });
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).ok()
    }
}

/// Where the broker listens, as its log says.
fn ready(log: &mut BufReader<ChildStderr>) -> Result<SocketAddr> {
    let mut line = String::new();
    loop {
        line.clear();
        anyhow::ensure!(log.read_line(&mut line)? > 0, "the broker did not start");
        let Ok(entry) = serde_json::from_str::<Value>(&line) else { continue };
        if entry["message"] == "ready" {
            return Ok(entry["address"].as_str().context("an address")?.parse()?);
        }
    }
}
