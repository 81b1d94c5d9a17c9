//! Figures: latencies, medians with their spread, and tables of them in Markdown.

use std::time::Duration;

use hdrhistogram::Histogram;

/// How long each of many things took.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    /// None yet. Three digits, from a nanosecond to two minutes.
    ///
    /// # Panics
    /// Never: the bounds are constants that the histogram takes.
    #[must_use]
    pub fn new() -> Self {
        match Histogram::new_with_bounds(1, 120_000_000_000, 3) {
            Ok(histogram) => Self(histogram),
            Err(error) => panic!("{error}"),
        }
    }

    /// One more.
    pub fn add_ns(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// One more.
    pub fn add(&mut self, time: Duration) {
        self.add_ns(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// All of another's as well.
    pub fn merge(&mut self, other: &Self) {
        // The bounds are the same.
        let _ = self.0.add(&other.0);
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the given share (0.0 to 1.0) did not exceed, in microseconds.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn us(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1_000.0
    }
}

/// The same figure from several rounds.
#[derive(Debug, Clone, Default)]
pub struct Spread(Vec<f64>);

impl Spread {
    /// One round more.
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// The middle one.
    #[must_use]
    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => self.0[middle],
            _ => f64::midpoint(self.0[middle - 1], self.0[middle]),
        }
    }

    /// `median (min..max)`, with three significant digits; `-` for what is no figure.
    #[must_use]
    pub fn show(&self) -> String {
        match (self.0.first(), self.0.last()) {
            (Some(min), _) if min.is_nan() => "-".to_owned(),
            (Some(min), Some(max)) => format!("{} ({}..{})", digits(self.median()), digits(*min), digits(*max)),
            _ => "-".to_owned(),
        }
    }
}

impl FromIterator<f64> for Spread {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut out = Self::default();
        values.into_iter().for_each(|value| out.add(value));
        out
    }
}

/// Three significant digits.
#[must_use]
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// So many in this time, in a second.
#[must_use]
#[allow(clippy::cast_precision_loss)]
pub fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Rows of figures that were measured in turns: each cell of a row is one figure over all rounds.
#[derive(Debug)]
pub struct Table {
    labels: Vec<String>,
    columns: &'static [&'static str],
    rows: Vec<Vec<Spread>>,
}

impl Table {
    /// No rows yet.
    #[must_use]
    pub const fn new(columns: &'static [&'static str]) -> Self {
        Self { labels: Vec::new(), columns, rows: Vec::new() }
    }

    /// One round of the row with this label; a new row if there is none.
    pub fn add(&mut self, label: &str, values: &[f64]) {
        let row = self.labels.iter().position(|known| known == label).unwrap_or_else(|| {
            self.labels.push(label.to_owned());
            self.rows.push(vec![Spread::default(); values.len()]);
            self.rows.len() - 1
        });
        for (cell, value) in self.rows[row].iter_mut().zip(values) {
            cell.add(*value);
        }
    }

    /// A figure of a row.
    #[must_use]
    pub fn cell(&self, label: &str, column: usize) -> Option<&Spread> {
        let row = self.labels.iter().position(|known| known == label)?;
        self.rows[row].get(column)
    }

    /// The table in Markdown.
    #[must_use]
    pub fn show(&self) -> String {
        let mut out = format!("| {} |\n|{}\n", self.columns.join(" | "), "---|".repeat(self.columns.len()));
        for (label, row) in self.labels.iter().zip(&self.rows) {
            let cells: Vec<_> = row.iter().map(Spread::show).collect();
            out.push_str(&format!("| {label} | {} |\n", cells.join(" | ")));
        }
        out
    }
}
