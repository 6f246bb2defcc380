//! What was found for each row of the table: figures against their targets.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::statistics::{
    count, largest, median, median_interval95, quantile, quantile_interval95, share_interval95,
};

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    /// What was measured, or why it could not be.
    pub(super) what: String,
    /// `None` where it could not be measured.
    pub(super) value: Option<f64>,
    /// Measurements behind it.
    pub(super) n: usize,
    /// Where it lies with 95 % confidence.
    pub(super) interval95: Option<[f64; 2]>,
    /// The value's and the interval's unit.
    pub(super) unit: &'static str,
    /// `None`: stated, without a target of its own.
    pub(super) limit: Option<Limit>,
}

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Limit {
    /// At most this.
    AtMost(f64),
    /// Below this.
    Below(f64),
    /// At least this.
    AtLeast(f64),
    /// From the one to the other.
    Between(f64, f64),
    /// This and nothing else.
    Exactly(f64),
}

impl Limit {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::Below(limit) => value < limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Between(low, high) => (low..=high).contains(&value),
            #[expect(
                clippy::float_cmp,
                reason = "of counts and shares of counts: all or not all"
            )]
            Self::Exactly(limit) => value == limit,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {limit} {unit}"),
            Self::Below(limit) => format!("< {limit} {unit}"),
            Self::AtLeast(limit) => format!("≥ {limit} {unit}"),
            Self::Between(low, high) => format!("{low} to {high} {unit}"),
            Self::Exactly(limit) => format!("{limit} {unit}"),
        }
    }
}

impl Part {
    /// The median of these, and where it lies.
    pub(super) fn median(what: impl Into<String>, values: &[f64], unit: &'static str) -> Self {
        Self {
            value: median(values),
            // Any fixed seed: the same values have the same interval.
            interval95: median_interval95(values, 1),
            ..Self::of(what, values.len(), unit)
        }
    }

    /// The `q`-quantile (0 to 1) of these, and where it lies.
    pub(super) fn quantile(
        what: impl Into<String>,
        values: &[f64],
        q: f64,
        unit: &'static str,
    ) -> Self {
        Self {
            value: quantile(values, q),
            interval95: quantile_interval95(values, q, 1),
            ..Self::of(what, values.len(), unit)
        }
    }

    /// The largest of these.
    pub(super) fn largest(what: impl Into<String>, values: &[f64], unit: &'static str) -> Self {
        Self {
            value: largest(values),
            ..Self::of(what, values.len(), unit)
        }
    }

    /// The share of `n` that were as they should be, and where it lies; its
    /// target is all of them.
    pub(super) fn all(what: impl Into<String>, hits: usize, n: usize, unit: &'static str) -> Self {
        Self::share(what, hits, n, unit).limit(Limit::Exactly(1.0))
    }

    /// The share of `n` that were so, and where it lies.
    pub(super) fn share(
        what: impl Into<String>,
        hits: usize,
        n: usize,
        unit: &'static str,
    ) -> Self {
        Self {
            value: (n > 0).then(|| count(hits) / count(n)),
            interval95: share_interval95(hits, n),
            ..Self::of(what, n, unit)
        }
    }

    /// A figure that was computed from `n` measurements.
    pub(super) fn figure(
        what: impl Into<String>,
        value: Option<f64>,
        n: usize,
        unit: &'static str,
    ) -> Self {
        Self {
            value,
            ..Self::of(what, n, unit)
        }
    }

    /// What could not be measured.
    pub(super) fn missing(what: impl Into<String>, why: &str) -> Self {
        Self::of(format!("{}: not measured: {why}", what.into()), 0, "").limit(Limit::Exactly(0.0))
    }

    /// Stated, without a target of its own.
    pub(super) const fn stated(mut self) -> Self {
        self.limit = None;
        self
    }

    /// With a target.
    pub(super) const fn limit(mut self, limit: Limit) -> Self {
        self.limit = Some(limit);
        self
    }

    fn of(what: impl Into<String>, n: usize, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value: None,
            n,
            interval95: None,
            unit,
            limit: None,
        }
    }

    fn holds(&self) -> bool {
        self.limit
            .is_none_or(|limit| self.value.is_some_and(|value| limit.holds(value)))
    }

    fn to_json(&self) -> Value {
        json!({
            "what": self.what,
            "value": self.value,
            "n": self.n,
            "interval95": self.interval95,
            "unit": self.unit,
            "target": self.limit.map(|limit| limit.text(self.unit)),
            "holds": self.limit.map(|_| self.holds()),
        })
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    what: &'static str,
    target: &'static str,
    parts: Vec<Part>,
}

impl Target {
    /// A row with its figures; a row without any was not measured.
    pub(super) fn new(what: &'static str, target: &'static str, mut parts: Vec<Part>) -> Self {
        if parts.iter().all(|part| part.limit.is_none()) {
            parts.push(Part::missing(what, "no run gave a figure"));
        }
        Self {
            what,
            target,
            parts,
        }
    }

    /// Whether every figure of the row that has a target meets it.
    pub(super) fn holds(&self) -> bool {
        self.parts.iter().all(Part::holds)
    }

    /// The row is as good as its worst figure: the first that fails, else the
    /// first that has a target.
    fn stands_for(&self) -> Option<&Part> {
        let mut with_target = self.parts.iter().filter(|part| part.limit.is_some());
        let failed = self.parts.iter().find(|part| !part.holds());
        failed.or_else(|| with_target.next())
    }

    pub(super) fn to_json(&self) -> Value {
        let part = self.stands_for();
        let detail = part.map_or("", |part| &part.what);
        json!({
            "what": format!("{}: {detail}", self.what),
            "value": part.and_then(|part| part.value),
            "n": part.map_or(0, |part| part.n),
            "interval95": part.and_then(|part| part.interval95),
            "unit": part.map_or("", |part| part.unit),
            "target": self.target,
            "holds": self.holds(),
            "parts": self.parts.iter().map(Part::to_json).collect::<Vec<_>>(),
        })
    }
}

/// The rows for people.
pub(super) fn table(targets: &[Target]) -> String {
    let mut text = String::new();
    for target in targets {
        let verdict = if target.holds() {
            "holds"
        } else {
            "DOES NOT HOLD"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n{}: {verdict}\n  target: {}",
            target.what, target.target
        );
        for part in &target.parts {
            let _ = writeln!(text, "  {}", line(part));
        }
    }
    text
}

fn line(part: &Part) -> String {
    let mark = if part.holds() { ' ' } else { '!' };
    let Some(value) = part.value else {
        return format!("{mark} {}", part.what);
    };
    let mut text = format!("{mark} {:>10} {}", number(value), part.unit);
    if let Some([low, high]) = part.interval95 {
        let _ = write!(text, " [{}, {}]", number(low), number(high));
    }
    if let Some(limit) = part.limit {
        let _ = write!(text, " ({})", limit.text(part.unit));
    }
    format!("{text}  {} (n {})", part.what, part.n)
}

fn number(value: f64) -> String {
    if value == value.trunc() {
        return format!("{value}");
    }
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(value: Option<f64>) -> Part {
        Part {
            value,
            ..Part::of("a figure", 3, "µs").limit(Limit::AtMost(2.0))
        }
    }

    #[test]
    fn a_row_stands_for_its_first_failure() {
        let parts = vec![part(Some(1.0)), part(Some(3.0)), part(Some(4.0))];
        let row = Target::new("cost", "≤ 2 µs", parts).to_json();
        assert_eq!(row["value"], 3.0);
        assert_eq!(row["holds"], false);
        assert_eq!(row["parts"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        let row = Target::new("cost", "≤ 2 µs", vec![part(Some(1.0)), part(None)]).to_json();
        assert_eq!(
            (&row["value"], &row["holds"]),
            (&Value::Null, &json!(false))
        );
        let row = Target::new("cost", "≤ 2 µs", Vec::new()).to_json();
        assert_eq!(
            (&row["value"], &row["holds"]),
            (&Value::Null, &json!(false))
        );
        let missing = Part::missing("cost", "no KVM");
        assert!(!missing.holds() && missing.what.contains("no KVM"));
    }

    #[test]
    fn figures_without_a_target_decide_nothing() {
        let stated = Part::largest("stated", &[9.0], "µs");
        let row = Target::new("cost", "≤ 2 µs", vec![stated, part(Some(1.0))]);
        assert_eq!(row.to_json()["value"], 1.0);
        assert!(row.holds());
    }

    #[test]
    fn all_means_all() {
        assert!(Part::all("syncs", 5, 5, "of syncs").holds());
        assert!(!Part::all("syncs", 4, 5, "of syncs").holds());
        assert!(!Part::all("syncs", 0, 0, "of syncs").holds());
    }

    #[test]
    fn limits_have_two_sides() {
        for (limit, inside, outside) in [
            (Limit::AtLeast(2.0), [2.0, 9.0], [1.9, 0.0]),
            (Limit::Between(0.85, 0.95), [0.85, 0.95], [0.84, 0.96]),
        ] {
            assert!(inside.into_iter().all(|value| limit.holds(value)));
            assert!(!outside.into_iter().any(|value| limit.holds(value)));
        }
        assert_eq!(
            Limit::Between(0.85, 0.95).text("of runs"),
            "0.85 to 0.95 of runs"
        );
    }

    #[test]
    fn the_table_shows_every_figure() {
        let rows = [Target::new("cost", "≤ 2 µs", vec![part(Some(3.0))])];
        let text = table(&rows);
        assert!(
            text.contains("DOES NOT HOLD") && text.contains("3 µs (≤ 2 µs)"),
            "{text}"
        );
    }
}
