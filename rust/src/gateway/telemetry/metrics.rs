//! Counters of a gateway.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// What requests are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Frames.
    Frames,
    /// Instances.
    Instances,
    /// Headers.
    Metadata,
    /// Values of single elements.
    BulkData,
    /// Searches.
    Search,
    /// Pages and files of the viewer.
    Page,
}

/// Names of [`Kind`], in order.
const KINDS: [&str; 6] = ["frames", "instances", "metadata", "bulkdata", "search", "page"];

/// Where the table of a requested frame came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Memory.
    Memory,
    /// The index.
    Index,
    /// The file.
    File,
}

const TIERS: [&str; 3] = ["memory", "index", "file"];

impl Tier {
    /// Its name in counters and logs.
    pub fn name(self) -> &'static str {
        TIERS.get(self as usize).copied().unwrap_or_default()
    }
}

#[derive(Default)]
struct Tally {
    requests: AtomicU64,
    refused: AtomicU64,
    microseconds: AtomicU64,
    slowest: AtomicU64,
}

/// Counters; all threads add to them.
#[derive(Default)]
pub struct Metrics {
    tallies: [Tally; KINDS.len()],
    tiers: [AtomicU64; TIERS.len()],
    /// Bytes of bodies that were begun.
    pub bytes: AtomicU64,
    /// Connections that are open.
    pub connections: AtomicU64,
    /// Requests that are answered now.
    pub in_flight: AtomicU64,
}

impl Metrics {
    /// Counts a request.
    pub fn count(&self, kind: Kind, status: u16, length: Option<u64>, microseconds: u64) {
        let Some(tally) = self.tallies.get(kind as usize) else { return };
        tally.requests.fetch_add(1, Ordering::Relaxed);
        tally.refused.fetch_add(u64::from(status >= 400), Ordering::Relaxed);
        tally.microseconds.fetch_add(microseconds, Ordering::Relaxed);
        tally.slowest.fetch_max(microseconds, Ordering::Relaxed);
        self.bytes.fetch_add(length.unwrap_or(0), Ordering::Relaxed);
    }

    /// Counts the tier of a table.
    pub fn count_tier(&self, tier: Tier) {
        if let Some(count) = self.tiers.get(tier as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All counters in Prometheus' text format, and the memory for frame tables: number, bytes, budget.
    pub fn to_prometheus(&self, tables: [u64; 3]) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, rows: &[(&str, u64)]| {
            let _ = writeln!(out, "# HELP voxtier_{name} {help}\n# TYPE voxtier_{name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(out, "voxtier_{name}{labels} {value}");
            }
        };
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let by_kind = |read: fn(&Tally) -> &AtomicU64| -> Vec<(String, u64)> {
            let labels = KINDS.iter().map(|kind| format!("{{route=\"{kind}\"}}"));
            labels.zip(self.tallies.iter().map(|tally| load(read(tally)))).collect()
        };
        for (name, help, rows) in [
            ("requests_total", "Requests answered.", by_kind(|tally| &tally.requests)),
            (
                "refused_total",
                "Requests answered with a status of 400 or above.",
                by_kind(|tally| &tally.refused),
            ),
            ("microseconds_total", "Time until the body began.", by_kind(|tally| &tally.microseconds)),
        ] {
            let rows: Vec<(&str, u64)> =
                rows.iter().map(|(labels, value)| (labels.as_str(), *value)).collect();
            family(name, "counter", help, &rows);
        }
        let tiers: Vec<(String, u64)> = TIERS
            .iter()
            .map(|tier| format!("{{tier=\"{tier}\"}}"))
            .zip(self.tiers.iter().map(load))
            .collect();
        let tiers: Vec<(&str, u64)> = tiers.iter().map(|(labels, value)| (labels.as_str(), *value)).collect();
        family("tables_total", "counter", "Frame tables by the place that they came from.", &tiers);
        family("bytes_total", "counter", "Bytes of bodies.", &[("", load(&self.bytes))]);
        let [number, bytes, budget] = tables;
        family("memory_tables", "gauge", "Frame tables in memory.", &[("", number)]);
        family("memory_bytes", "gauge", "Bytes of frame tables in memory.", &[("", bytes)]);
        family("memory_budget_bytes", "gauge", "Memory for frame tables.", &[("", budget)]);
        family("connections", "gauge", "Open connections.", &[("", load(&self.connections))]);
        family("in_flight", "gauge", "Requests that are answered now.", &[("", load(&self.in_flight))]);
        out
    }

    /// All counters as a JSON object.
    pub fn to_json(&self) -> String {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut out = String::from("{\"routes\":{");
        for (position, (kind, tally)) in KINDS.iter().zip(&self.tallies).enumerate() {
            let comma = if position == 0 { "" } else { "," };
            let (requests, refused) = (load(&tally.requests), load(&tally.refused));
            let (total, slowest) = (load(&tally.microseconds), load(&tally.slowest));
            let _ = write!(
                out,
                "{comma}\"{kind}\":{{\"requests\":{requests},\"refused\":{refused},\"microseconds\":{total},\
                 \"slowest\":{slowest}}}"
            );
        }
        out.push_str("},\"tiers\":{");
        for (position, (tier, count)) in TIERS.iter().zip(&self.tiers).enumerate() {
            let comma = if position == 0 { "" } else { "," };
            let _ = write!(out, "{comma}\"{tier}\":{}", load(count));
        }
        let _ = write!(
            out,
            "}},\"bytes\":{},\"connections\":{},\"in_flight\":{}}}",
            load(&self.bytes),
            load(&self.connections),
            load(&self.in_flight)
        );
        out
    }
}
