//! `/metrics`: what Prometheus reads.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::Registry;

use crate::edge::{Gateway, Operator, Refusal};

mod counts;
mod page;
mod process;
mod state;

use page::Page;

/// The media type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// The content type of an answer in OpenMetrics.
const OPEN_METRICS_CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Prometheus' text format, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The format that a client prefers. OpenMetrics if it names that, and not with a lower quality than plain text.
    fn of(headers: &HeaderMap) -> Self {
        let (mut open_metrics, mut plain) = (0.0, 0.0);
        let ranges = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
        for range in ranges.flat_map(|accept| accept.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let best = match parts.next() {
                Some(kind) if kind.eq_ignore_ascii_case(OPEN_METRICS) => &mut open_metrics,
                Some(kind) if kind.eq_ignore_ascii_case("text/plain") => &mut plain,
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            let quality = quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
            *best = f32::max(*best, quality);
        }
        match open_metrics > 0.0 && open_metrics >= plain {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }
}

/// Metrics, for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses(
        (
            status = 200,
            description = "The metrics, in Prometheus' text format or in OpenMetrics, as `Accept` says",
            body = String, content_type = "text/plain"
        ),
        Refusal,
    )
)]
pub(super) async fn metrics(
    _: Operator,
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
) -> Response {
    answer(gateway, Format::of(&headers)).await
}

/// The same, where operators need no key.
pub(super) async fn for_everyone(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Response {
    answer(gateway, Format::of(&headers)).await
}

/// The metrics in this format.
async fn answer(gateway: Arc<Gateway>, format: Format) -> Response {
    // On a thread that may wait: the process is asked about at the system, and the store's figures are behind locks.
    match tokio::task::spawn_blocking(move || scrape(gateway, format)).await {
        Ok(body) => {
            let kind = match format {
                Format::Prometheus => prometheus_text::CONTENT_TYPE,
                Format::OpenMetrics => OPEN_METRICS_CONTENT,
            };
            ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store"), (VARY, "accept")], body).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the metrics could not be collected");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn scrape(gateway: Arc<Gateway>, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { gateway }));
    let mut body = String::new();
    let encoded = match format {
        Format::Prometheus => prometheus_text::encode(&mut body, &registry),
        Format::OpenMetrics => text::encode(&mut body, &registry),
    };
    encoded.expect("a string takes everything");
    body
}

/// The metrics in Prometheus' text format. Call it on a thread that may wait.
pub(in crate::ops) fn as_text(gateway: Arc<Gateway>) -> String {
    scrape(gateway, Format::Prometheus)
}

/// All metrics at the time of one scrape.
#[derive(Debug)]
struct Scrape {
    gateway: Arc<Gateway>,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let page = &mut Page::new(encoder);
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("durability", self.gateway.broker.durability()),
            ("auth", self.gateway.identity.auth().name()),
        ];
        page.info("x0_msg_build", "Version and mode of the broker", &labels)?;
        counts::encode(page)?;
        state::encode(page, &self.gateway)?;
        process::encode(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(accept: &'static str) -> Format {
        Format::of(&HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]))
    }

    #[test]
    fn the_format_is_what_the_client_prefers() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.2";
        for accept in
            ["application/openmetrics-text", "text/plain;q=0.5, Application/OpenMetrics-Text", prometheus]
        {
            assert_eq!(format(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "application/openmetrics-text; q=0",
            "application/openmetrics-text;q=0.3,text/plain;q=0.5",
            "application/openmetrics-text;q=x",
        ] {
            assert_eq!(format(accept), Format::Prometheus, "{accept}");
        }
        assert_eq!(Format::of(&HeaderMap::new()), Format::Prometheus);
    }
}
