//! `health`: the state of a running broker, for health checks on machines without curl.

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::http::header;

use crate::cli::say::print;
use crate::cli::target::{ANSWER_TIMEOUT, NOT_HTTP, Target, Verify};

/// Most bytes of an answer. A broker sends a few hundred.
const MAX_ANSWER: usize = 64 << 10;

/// Settings of `health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    #[command(flatten)]
    target: Target,
    /// Ask whether to send traffic there (`/readyz`), and not only whether the process is well (`/healthz`)
    #[arg(long)]
    ready: bool,
}

/// Prints what `/healthz` or `/readyz` answers.
///
/// # Errors
/// The broker cannot be reached, does not answer in time, or answers that it is not well.
pub async fn health(args: HealthArgs) -> Result<()> {
    let authority = &args.target.authority()?;
    let answer = timeout(ANSWER_TIMEOUT, get_health(&args, authority)).await;
    answer
        .map_err(|_| anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))?
        .with_context(|| format!("no healthy broker answers at {authority}"))
}

async fn get_health(args: &HealthArgs, authority: &str) -> Result<()> {
    let stream = args.target.stream(Verify::NotLoopback).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let request = hyper::Request::get(path).header(header::HOST, authority);
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await.map_err(|error| {
        match error.is_parse() {
            true => anyhow!("{error}{NOT_HTTP}"),
            false => error.into(),
        }
    })?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow!("the answer is not that of a broker: {error}"))?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    if !status.is_success() {
        bail!("the broker answered {status}: {}", text.trim_end());
    }
    print(text.trim_end())
}
