//! Which broker to talk to, and how to get there: over TLS too, and with a token.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Uri, header};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::either::Either;

use super::PATIENCE;
use crate::protocol::SUBPROTOCOL;
use crate::tls;

/// Where the broker is.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The broker [default: ws://127.0.0.1:8080, or wss:// where X0_MSG_TLS_CERT is set]
    #[arg(long, env = "X0_MSG_SERVER", value_name = "URL")]
    server: Option<String>,
}

/// What proves who this is.
#[derive(Debug, Clone, Args)]
pub struct TokenSource {
    /// File with a token, or with an API key; it may also come in X0_MSG_TOKEN
    #[arg(long, env = "X0_MSG_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl TokenSource {
    /// The token, if there is one.
    pub(super) fn token(&self) -> Result<Option<String>> {
        let token = match &self.token_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read --token-file {}", path.display()))?,
            ),
            None => std::env::var("X0_MSG_TOKEN").ok(),
        };
        Ok(token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
    }
}

/// A stream to a broker.
pub(super) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// A WebSocket to a broker.
pub(super) type Socket = WebSocketStream<Stream>;

/// Whether the certificate of the server must be good.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    Always,
    /// Not on this machine, where it is asked nothing but its health, under a name that no certificate has.
    NotLoopback,
}

impl Target {
    fn base(&self) -> &str {
        let default = if std::env::var_os("X0_MSG_TLS_CERT").is_some() { "wss" } else { "ws" };
        let default = if default == "wss" { "wss://127.0.0.1:8080" } else { "ws://127.0.0.1:8080" };
        self.server.as_deref().unwrap_or(default).trim_end_matches('/')
    }

    /// The address of `/ws`, and whether TLS is spoken there; from a base address with any usual scheme.
    fn socket(&self) -> Result<(Uri, bool)> {
        let base = self.base();
        let (scheme, rest) = base.split_once("://").unwrap_or(("ws", base));
        let secure = match scheme {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => bail!("--server must begin with ws://, wss://, http:// or https://, not {scheme}://"),
        };
        let scheme = if secure { "wss" } else { "ws" };
        let uri = format!("{scheme}://{}/ws", rest.trim_end_matches("/ws"));
        Ok((uri.parse().context("--server is not an address")?, secure))
    }

    /// Host and port.
    pub(super) fn authority(&self) -> Result<String> {
        let (uri, _) = self.socket()?;
        Ok(uri.authority().map(ToString::to_string).unwrap_or_default())
    }

    /// Opens a connection.
    pub(super) async fn stream(&self, verify: Verify) -> Result<Stream> {
        let (uri, secure) = self.socket()?;
        let host = uri.host().context("--server names no host")?;
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare, port)).await?;
        if !secure {
            return Ok(Either::Left(stream));
        }
        let unverified = verify == Verify::NotLoopback && stream.peer_addr()?.ip().is_loopback();
        let config = match unverified {
            true => tls::unverified_client_config(),
            false => tls::client_config(),
        };
        let config = config.map_err(|why| anyhow!("cannot speak TLS: {why}"))?;
        let name = ServerName::try_from(bare.to_owned()).context("--server names no host")?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.context(
            "cannot speak TLS there; SSL_CERT_FILE names a certificate to trust that the system does not know",
        )?;
        Ok(Either::Right(stream))
    }

    /// Opens a WebSocket.
    pub(super) async fn connect(&self) -> Result<Socket> {
        let (uri, _) = self.socket()?;
        let mut request = uri.clone().into_client_request().context("--server is not an address")?;
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        let connect = async {
            Ok::<_, anyhow::Error>(client_async(request, self.stream(Verify::Always).await?).await?.0)
        };
        let connected = timeout(PATIENCE, connect).await;
        connected
            .map_err(|_| anyhow!("no answer within {} s", PATIENCE.as_secs()))
            .and_then(|connected| connected)
            .with_context(|| format!("cannot connect to {uri}; is the broker running?"))
    }
}
