//! What a load measured.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies, counts and what it cost. Times before the end of the warm-up are left out.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// In microseconds.
    pub latencies: Histogram<u64>,
    /// Answers in each [`INTERVAL`] of the time measured.
    pub answers: Vec<u64>,
    /// From the end of the warm-up to the last answer, or to the end of the load if that is later.
    pub time: Duration,
    /// Rows that each request writes or reads.
    pub rows: u64,
    /// Requests that were not answered with a success.
    pub failed: u64,
    /// What the first of them was answered.
    pub first_failure: Option<String>,
    /// Processor time of the servers that were named, in the order in which they were.
    pub processor: Vec<Duration>,
}

impl Measurement {
    /// Nothing yet.
    ///
    /// # Panics
    ///
    /// Never: the bounds are good.
    #[must_use]
    pub fn new(rows: u64, time: Duration) -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX, 3);
        Self {
            latencies: latencies.expect("good bounds"),
            answers: vec![0; whole(time.as_secs_f64() / INTERVAL.as_secs_f64()).max(1)],
            time,
            rows,
            failed: 0,
            first_failure: None,
            processor: Vec::new(),
        }
    }

    /// An answer that came `at` this time after the warm-up, `latency` after its request.
    pub fn answer(&mut self, at: Duration, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MAX);
        self.latencies.saturating_record(micros.max(1));
        self.time = self.time.max(at);
        let place = whole(at.as_secs_f64() / INTERVAL.as_secs_f64());
        if place >= self.answers.len() {
            self.answers.resize(place + 1, 0);
        }
        self.answers[place] += 1;
    }

    /// A request that failed.
    pub fn fail(&mut self, why: String) {
        self.failed += 1;
        self.first_failure.get_or_insert(why);
    }

    /// Adds what another connection measured.
    ///
    /// # Panics
    ///
    /// Never: all have the same bounds.
    pub fn add(&mut self, other: Self) {
        self.latencies
            .add(&other.latencies)
            .expect("the same bounds");
        self.time = self.time.max(other.time);
        let intervals = self.answers.len().max(other.answers.len());
        self.answers.resize(intervals, 0);
        for (sum, more) in self.answers.iter_mut().zip(&other.answers) {
            *sum += more;
        }
        self.failed += other.failed;
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }

    /// Successful requests per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// A latency in microseconds; `quantile` of 0.5 is the median.
    #[must_use]
    pub fn latency(&self, quantile: f64) -> u64 {
        self.latencies.value_at_quantile(quantile)
    }

    /// Processor time per request in microseconds, of each server.
    #[must_use]
    pub fn processor_per_request(&self) -> Vec<f64> {
        let requests = self.latencies.len().max(1) as f64;
        let each = self.processor.iter();
        each.map(|time| time.as_secs_f64() * 1e6 / requests)
            .collect()
    }

    /// For people, one line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!(
            "{:>9.0}/s  p50 {:>7} us  p90 {:>7}  p99 {:>7}  p99.9 {:>7}  max {:>7}",
            self.rate(),
            self.latency(0.5),
            self.latency(0.9),
            self.latency(0.99),
            self.latency(0.999),
            self.latencies.max(),
        );
        if self.rows > 1 {
            line += &format!("  {:.0} rows/s", self.rate() * self.rows as f64);
        }
        let processor = self.processor_per_request();
        if !processor.is_empty() {
            let each: Vec<String> = processor.iter().map(|us| format!("{us:.0}")).collect();
            line += &format!("  cpu us/request {}", each.join(" "));
        }
        if let Some(why) = &self.first_failure {
            line += &format!("  {} FAILED, the first: {why}", self.failed);
        }
        line
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "requests": self.latencies.len(),
            "failed": self.failed,
            "first_failure": self.first_failure,
            "seconds": self.time.as_secs_f64(),
            "requests_per_second": self.rate(),
            "rows_per_second": self.rate() * self.rows as f64,
            "latency_us": {
                "p50": self.latency(0.5), "p90": self.latency(0.9), "p99": self.latency(0.99),
                "p99_9": self.latency(0.999), "max": self.latencies.max(),
                "mean": self.latencies.mean(),
            },
            "processor_us_per_request": self.processor_per_request(),
            "answers_per_interval": self.answers,
            "interval_seconds": INTERVAL.as_secs_f64(),
        })
    }
}

/// The whole part of a number that is not negative.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(number: f64) -> usize {
    number.max(0.0) as usize
}

/// The middle of some figures; of an even number, the upper one of the two.
#[must_use]
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What throughput over time is counted by.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// One minute in microseconds.
const LATENCY_MAX: u64 = 60_000_000;
