//! Durations, rates and points in time as operators write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A rate of stream data, in bytes per second; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

/// Why a text is not a rate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RateError {
    /// The number or the unit cannot be read.
    #[error("`{0}` is not a rate; write for instance 50MB/s, 400Mbit/s or 1GiB/s")]
    Unreadable(String),
    /// A rate below one byte per second would never end.
    #[error("a rate must be at least 1B/s: `{0}` would never move a byte")]
    Zero(String),
}

/// Units of a rate and what one of each is in bits.
const UNITS: [(&str, f64); 16] = [
    ("bit", 1.0),
    ("kbit", 1e3),
    ("Kbit", 1e3),
    ("Mbit", 1e6),
    ("Gbit", 1e9),
    ("B", 8.0),
    ("kB", 8e3),
    ("KB", 8e3),
    ("MB", 8e6),
    ("GB", 8e9),
    ("KiB", 8.0 * 1024.0),
    ("MiB", 8.0 * 1024.0 * 1024.0),
    ("GiB", 8.0 * 1024.0 * 1024.0 * 1024.0),
    ("Kibit", 1024.0),
    ("Mibit", 1024.0 * 1024.0),
    ("Gibit", 1024.0 * 1024.0 * 1024.0),
];

impl Rate {
    /// So many bytes per second; `None` for nothing.
    #[must_use]
    pub const fn new(bytes_per_second: u64) -> Option<Self> {
        match bytes_per_second {
            0 => None,
            rate => Some(Self(rate)),
        }
    }

    /// Bytes per second.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let unreadable = || RateError::Unreadable(text.to_owned());
        let trimmed = text.trim();
        let amount = trimmed
            .strip_suffix("/s")
            .or_else(|| trimmed.strip_suffix("ps"))
            .unwrap_or(trimmed);
        let split = amount
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(amount.len());
        let (number, unit) = amount.split_at(split);
        let number: f64 = number.parse().map_err(|_| unreadable())?;
        let bits = match unit.trim() {
            "" if number == 0.0 => 8.0,
            unit => {
                UNITS
                    .iter()
                    .find(|(name, _)| *name == unit)
                    .ok_or_else(unreadable)?
                    .1
            }
        };
        let bytes = number * bits / 8.0;
        if bytes < 1.0 {
            return Err(RateError::Zero(text.to_owned()));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 1, saturates at u64::MAX"
        )]
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show_rate(self.0))
    }
}

/// `bytes_per_second` for people: three digits and a decimal unit.
#[must_use]
pub fn show_rate(bytes_per_second: u64) -> String {
    format!("{}/s", show_bytes(bytes_per_second))
}

/// `bytes` for people: three digits and a decimal unit.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    let mut value = to_f64(bytes);
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = usize::from(value < 9.95 && unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// Seconds as people read them: `1.3 s`, `2 min 05 s`.
#[must_use]
pub fn show_seconds(seconds: f64) -> String {
    if seconds < 99.95 {
        return format!("{seconds:.1} s");
    }
    let whole = from_f64(seconds.round());
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours} h {minutes:02} min")
    } else {
        format!("{minutes} min {rest:02} s")
    }
}

/// A duration as written on the command line: `300ms`, `90s`, `10m`, `2h`.
///
/// # Errors
///
/// A text that says what a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write for instance 300ms, 90s, 10m or 2h"))
}

/// A duration longer than nothing.
///
/// # Errors
///
/// As [`parse_duration`], and for zero.
pub fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("it must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// A point in wall-clock time (RFC 3339).
///
/// # Errors
///
/// A text that says what such a time looks like.
pub fn parse_timestamp(text: &str) -> Result<jiff::Timestamp, String> {
    text.parse()
        .map_err(|error| format!("{error}; write for instance 2026-01-31T02:00:00Z"))
}

/// The nearest `f64`.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "byte and page counts stay far below 2^53"
)]
pub const fn to_f64(value: u64) -> f64 {
    value as f64
}

/// The nearest `u64`; zero for what is negative or not a number.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturating is what is wanted"
)]
pub const fn from_f64(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_as_written() {
        let check = |text: &str, bytes: u64| {
            let rate: Rate = text.parse().expect(text);
            assert_eq!(rate.bytes_per_second(), bytes, "{text}");
        };
        check("50MB/s", 50_000_000);
        check("400Mbit/s", 50_000_000);
        check("1GiB/s", 1 << 30);
        check("1.5 MB/s", 1_500_000);
        check("10kB/s", 10_000);
        check("8bit/s", 1);
    }

    #[test]
    fn rates_that_make_no_sense_are_refused() {
        for text in ["", "fast", "10", "10 parsec/s", "-5MB/s", "1e3MB/s"] {
            assert!(
                matches!(text.parse::<Rate>(), Err(RateError::Unreadable(_))),
                "{text}"
            );
        }
        for text in ["0", "0MB/s", "0/s", "1bit/s"] {
            assert!(
                matches!(text.parse::<Rate>(), Err(RateError::Zero(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn bytes_and_seconds_for_people() {
        assert_eq!(show_bytes(0), "0 B");
        assert_eq!(show_bytes(12_345_678), "12 MB");
        assert_eq!(show_rate(1_500_000), "1.5 MB/s");
        assert_eq!(show_bytes(999_600), "1.0 MB");
        assert_eq!(show_seconds(1.25), "1.2 s");
        assert_eq!(show_seconds(125.0), "2 min 05 s");
        assert_eq!(show_seconds(7260.0), "2 h 01 min");
    }

    #[test]
    fn durations_read_as_written() {
        assert_eq!(parse_duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert!(parse_duration("soon").is_err());
        assert!(parse_positive_duration("0s").is_err());
    }
}
