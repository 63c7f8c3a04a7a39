//! Spans of time on the command line.

use std::time::Duration;

/// Parses seconds, as on the wire, or numbers with units: `90`, `0.5`, `90s`, `1h 30m`, `1d`.
pub(super) fn seconds_or_units(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.or_else(|| humantime::parse_duration(text).ok()).ok_or_else(|| {
        "must be a number of seconds, or numbers with units, like 90, 0.5, 10m, 1h 30m or 1d".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_of_seconds_or_has_units() {
        for (text, milliseconds) in [
            ("90", 90_000),
            ("0.5", 500),
            ("1e3", 1_000_000),
            ("0s", 0),
            ("10m", 600_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(seconds_or_units(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for wrong in ["", "-1", "soon", "1 fortnight", "NaN", "inf", "1e300", "-1s"] {
            assert!(seconds_or_units(wrong).unwrap_err().contains("like 90, 0.5, 10m"), "{wrong}");
        }
    }
}
