//! The last refusals and warnings, kept in memory for who looks at the broker later. Bounded, whatever is logged.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::Mutex;
use std::time::SystemTime;

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use utoipa::ToSchema;

use crate::clock::millis;
use crate::sync::lock;

/// How many are kept.
const KEPT: usize = 50;

/// Most bytes of a text, and of the fields beside it.
const MOST_TEXT: usize = 500;

/// The field that makes a line of level INFO a refusal.
const CODE: &str = "code";

/// The last ones, oldest first. Held for a copy.
static RECENT: Mutex<VecDeque<RecentEvent>> = Mutex::new(VecDeque::new());

/// A line of the log that says what went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct RecentEvent {
    /// When it was logged last, in Unix milliseconds.
    ts: u64,
    /// `ERROR`, `WARN`, or `INFO` for a refusal.
    level: &'static str,
    /// What was wrong, and what to do.
    message: String,
    /// What else the line says, as `name=value`.
    fields: String,
    /// How many times it was logged in a row.
    count: u64,
}

/// The last refusals and warnings, newest first.
pub(crate) fn recent() -> Vec<RecentEvent> {
    lock(&RECENT).iter().rev().cloned().collect()
}

/// Notes refusals and warnings as they are logged.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Recent;

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let is_refusal = || *metadata.level() == Level::INFO && metadata.fields().field(CODE).is_some();
        if *metadata.level() > Level::WARN && !is_refusal() {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let ts = SystemTime::UNIX_EPOCH.elapsed().map_or(0, millis);
        let Text { message, fields } = text;
        note(
            &mut lock(&RECENT),
            RecentEvent { ts, level: metadata.level().as_str(), message, fields, count: 1 },
        );
    }
}

/// Adds an event. One that repeats the newest one counts with that.
fn note(recent: &mut VecDeque<RecentEvent>, event: RecentEvent) {
    let is_same = |last: &&mut RecentEvent| {
        (last.level, &last.message, &last.fields) == (event.level, &event.message, &event.fields)
    };
    if let Some(last) = recent.back_mut().filter(is_same) {
        (last.ts, last.count) = (event.ts, last.count + 1);
        return;
    }
    if recent.len() == KEPT {
        recent.pop_front();
    }
    recent.push_back(event);
}

/// The text of an event.
#[derive(Debug, Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let (text, name) = match field.name() {
            "message" => (&mut self.message, None),
            name => (&mut self.fields, Some(name)),
        };
        let mut bounded = Bounded(text);
        // What has no room is left out.
        _ = match name {
            None => bounded.write_fmt(value),
            Some(name) => {
                let space = if bounded.0.is_empty() { "" } else { " " };
                write!(bounded, "{space}{name}={value}")
            }
        };
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}

/// Text that takes no more than [`MOST_TEXT`] bytes.
struct Bounded<'a>(&'a mut String);

impl Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MOST_TEXT.saturating_sub(self.0.len());
        let end = (0..=room.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        self.0.push_str(&text[..end]);
        if end < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn event(message: &str) -> RecentEvent {
        RecentEvent { ts: 1, level: "WARN", message: message.to_owned(), fields: String::new(), count: 1 }
    }

    #[test]
    fn the_oldest_go_and_repetitions_are_counted() {
        let mut recent = VecDeque::new();
        for n in 0..2 * KEPT {
            note(&mut recent, event(&n.to_string()));
            note(&mut recent, RecentEvent { ts: 7, ..event(&n.to_string()) });
        }
        assert_eq!(recent.len(), KEPT);
        assert!(recent.iter().all(|event| event.count == 2 && event.ts == 7));
        assert_eq!(recent[0].message, KEPT.to_string());
    }

    #[test]
    fn warnings_errors_and_refusals_are_kept_and_are_bounded() {
        let long = "ä".repeat(MOST_TEXT);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Recent), || {
            tracing::warn!(limit = 3, who = %"ann", "the test is near its limit");
            tracing::info!("nothing of interest to this test");
            tracing::info!(code = "rate_limited", "the test was refused");
            tracing::error!(long, "the test {long}");
        });
        let found = recent();
        let of = |part: &str| found.iter().find(|event| event.message.contains(part));
        assert_eq!(of("near its limit").unwrap().fields, "limit=3 who=ann");
        assert_eq!((of("was refused").unwrap().level, of("of interest")), ("INFO", None));
        let long = of("ää").unwrap();
        assert!(long.message.len() <= MOST_TEXT && long.fields.len() <= MOST_TEXT, "{long:?}");
        assert!(long.message.len() > MOST_TEXT - 2);
    }
}
