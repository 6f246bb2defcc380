//! The answer in sentences. Pure.

use std::fmt::Write as _;

use super::answer::{Answer, CurvePoint};
use crate::pacing::forecast::Percentiles;
use crate::pacing::objective::Verdict;
use crate::pacing::prediction::{Convergence, DeadlineRates, Prediction};
use crate::units::{from_f64, show_bytes, show_rate, show_seconds};

/// A guest that writes less than this, in bytes a second, converges at any rate
/// that anyone would ask for.
const NEXT_TO_NOTHING: f64 = 10e3;

/// Which guest it is, and how it writes its memory.
#[must_use]
pub fn head(answer: &Answer) -> String {
    let facts = &answer.facts;
    let mut text = format!(
        "pid {}  QEMU {} ({})  {} of RAM",
        facts.pid,
        facts.version,
        facts.accelerator,
        show_bytes(facts.total_bytes)
    );
    if let Some(ratio) = facts.zero_ratio {
        // Writing to a string cannot fail.
        let _ = write!(text, ", {:.0} % zero", ratio * 100.0);
    }
    if !facts.is_running {
        text.push_str("  paused");
    }
    let points: Vec<String> = answer.curve.iter().map(point).collect();
    text.push_str("\nit writes ");
    text.push_str(&points.join(", "));
    text.push('\n');
    for note in &facts.notes {
        let _ = writeln!(text, "note  {note}");
    }
    text
}

fn point(point: &CurvePoint) -> String {
    let CurvePoint {
        window_seconds,
        pages_per_second,
        is_extrapolated,
    } = point;
    let extrapolated = if *is_extrapolated {
        " (extrapolated)"
    } else {
        ""
    };
    format!("{pages_per_second:.0} pages/s over {window_seconds} s{extrapolated}")
}

/// What follows: the knee, the earliest finish, and the deadline's rate.
#[must_use]
pub fn verdicts(answer: &Answer) -> String {
    let mut lines = vec![convergence(answer), earliest(answer)];
    if let Some(deadline) = &answer.prediction.deadline {
        lines.push(self::deadline(deadline, answer));
    }
    lines.join("\n") + "\n"
}

/// Where the migration converges, and why not below.
#[must_use]
pub fn convergence(answer: &Answer) -> String {
    let Prediction {
        knee,
        settled,
        highest,
        ..
    } = &answer.prediction;
    let written = format!(
        "the guest writes {} of distinct pages within a pass of {}",
        rate(settled.bytes_per_second),
        short(settled.seconds)
    );
    match knee.p50 {
        None => "converges at no rate".to_owned(),
        Some(p50) if p50 < NEXT_TO_NOTHING => {
            "converges at any rate: the guest writes next to nothing".to_owned()
        }
        Some(p50) if p50 > highest.rate => format!(
            "does not converge at any rate up to {}: {written}; the knee is {}",
            highest_rate(answer),
            interval(knee, rate)
        ),
        Some(_) => format!(
            "does not converge below {}: {written}",
            interval(knee, rate)
        ),
    }
}

fn earliest(answer: &Answer) -> String {
    let highest = &answer.prediction.highest;
    let finish = &highest.forecast.finish_seconds;
    match highest.convergence() {
        Convergence::No => "no finish is feasible".to_owned(),
        Convergence::Yes | Convergence::Unsure => format!(
            "earliest finish {}, at {}",
            interval(finish, show_seconds),
            highest_rate(answer)
        ),
    }
}

/// Which rate meets the deadline, or why none does.
#[must_use]
pub fn deadline(deadline: &DeadlineRates, answer: &Answer) -> String {
    let asked = show_seconds(deadline.deadline_seconds);
    let highest = &answer.prediction.highest;
    match (deadline.verdict(), deadline.even_rate, deadline.safe_rate) {
        (Verdict::Feasible, Some(even), Some(safe)) => format!(
            "arrives within {asked} at {} 19 times in 20, at {} one time in two",
            typed_rate(safe),
            typed_rate(even)
        ),
        (Verdict::Feasible, Some(even), None) => format!(
            "arrives within {asked} at {} one time in two; 19 times in 20 not even at {}",
            typed_rate(even),
            highest_rate(answer)
        ),
        _ if highest.convergence() == Convergence::No => {
            format!("cannot arrive within {asked}: it does not converge")
        }
        _ => format!(
            "cannot arrive within {asked}: at {} it ends after {}",
            highest_rate(answer),
            interval(&highest.forecast.finish_seconds, show_seconds)
        ),
    }
}

/// The highest rate and where it comes from.
fn highest_rate(answer: &Answer) -> String {
    let rate = rate(answer.prediction.highest.rate);
    if answer.is_rate_limited {
        rate
    } else {
        format!("{rate} (what a link may carry; --max-rate)")
    }
}

/// A rate that meets a deadline, to be typed: three digits, rounded up.
fn typed_rate(bytes_per_second: f64) -> String {
    let step = 10_f64.powf(bytes_per_second.max(1.0).log10().floor() - 2.0);
    let rounded = (bytes_per_second / step).ceil() * step;
    for (unit, size) in [("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)] {
        if rounded >= size {
            let shown = format!("{:.2}", rounded / size);
            let digits = shown.trim_end_matches('0').trim_end_matches('.');
            return format!("{digits}{unit}");
        }
    }
    format!("{:.0}B/s", rounded.ceil())
}

/// `p50 (p05 to p95)`.
fn interval(percentiles: &Percentiles, show: impl Fn(f64) -> String) -> String {
    let point = |value: Option<f64>| value.map_or_else(|| "never".to_owned(), &show);
    format!(
        "{} ({} to {})",
        point(percentiles.p50),
        point(percentiles.p05),
        point(percentiles.p95)
    )
}

/// A rate in bytes a second.
#[must_use]
pub fn rate(bytes_per_second: f64) -> String {
    show_rate(from_f64(bytes_per_second.round()))
}

/// A time below a second in milliseconds.
#[must_use]
pub fn short(seconds: f64) -> String {
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        show_seconds(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::tests::sample;
    use super::*;

    #[test]
    fn the_head_names_the_guest_and_its_curve() {
        let expected = "\
pid 42  QEMU 10.0.2 (kvm)  268 MB of RAM, 42 % zero
it writes 1900 pages/s over 0.1 s, 200 pages/s over 10 s (extrapolated)
note  this and that
";
        assert_eq!(head(&sample()), expected);
        let mut answer = sample();
        answer.facts.is_running = false;
        answer.facts.zero_ratio = None;
        assert!(head(&answer).starts_with("pid 42  QEMU 10.0.2 (kvm)  268 MB of RAM  paused\n"));
    }

    #[test]
    fn verdicts_have_their_reasons() {
        let expected = "\
does not converge below 8.0 MB/s (7.0 MB/s to 9.5 MB/s): the guest writes 7.9 MB/s of \
distinct pages within a pass of 50 ms
earliest finish 2.6 s (2.5 s to 2.8 s), at 100 MB/s
arrives within 30.0 s at 11MB/s 19 times in 20, at 10.2MB/s one time in two
";
        assert_eq!(verdicts(&sample()), expected);
    }

    #[test]
    fn what_cannot_be_is_said_with_what_can() {
        let mut answer = sample();
        let deadline = answer.prediction.deadline.as_mut().unwrap();
        (deadline.even_rate, deadline.safe_rate) = (None, None);
        answer.is_rate_limited = false;
        let text = verdicts(&answer);
        let cannot = "cannot arrive within 30.0 s: at 100 MB/s (what a link may carry; \
                      --max-rate) it ends after 2.6 s";
        assert!(text.contains(cannot), "{text}");
        answer.prediction.highest = answer.prediction.rows[0];
        let text = verdicts(&answer);
        assert!(
            text.contains("does not converge at any rate up to 3.0 MB/s"),
            "{text}"
        );
        assert!(text.contains("the knee is 8.0 MB/s"), "{text}");
        assert!(text.contains("no finish is feasible"), "{text}");
        assert!(
            text.contains("within 30.0 s: it does not converge"),
            "{text}"
        );
        answer.prediction.knee = Percentiles::new(1.0, 2.0, 3.0);
        assert!(convergence(&answer).contains("at any rate: the guest writes next to nothing"));
    }

    #[test]
    fn typed_rates_are_read_back_and_never_too_low() {
        for bytes in [1.0, 950.0, 999_999.0, 10_123_456.0, 1.25e9] {
            let typed: crate::units::Rate = typed_rate(bytes).parse().unwrap();
            let ratio = crate::units::to_f64(typed.bytes_per_second()) / bytes;
            assert!((0.999_999..1.02).contains(&ratio), "{bytes}: {typed}");
        }
        assert_eq!(typed_rate(12_345_678.0), "12.4MB/s");
    }
}
