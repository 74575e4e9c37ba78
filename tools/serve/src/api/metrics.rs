//! Metrics in Prometheus' text format.
//!
//! Source: Prometheus, "Exposition formats", text-based format 0.0.4.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kiln_runtime::report::MeasuredMemory;

use super::Shared;

/// A text of metrics.
struct Metrics(String);

impl Metrics {
    /// Adds a metric with a sample for each set of labels.
    fn add(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, f64)]) {
        // A string takes everything.
        let _ = writeln!(self.0, "# HELP kiln_{name} {help}\n# TYPE kiln_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "kiln_{name}{labels} {value}");
        }
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.add(name, kind, help, &[(String::new(), value)]);
    }
}

fn label(name: &str, value: impl std::fmt::Display) -> String {
    let value = value.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{{{name}=\"{value}\"}}")
}

pub async fn metrics(State(app): State<Shared>) -> Response {
    let mut text = Metrics(String::new());
    let counters = &app.queue.counters;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let seconds = |counter: &AtomicU64| count(counter) / 1e6;
    let results = [
        ("done", &counters.done),
        ("failed", &counters.failed),
        ("cancelled", &counters.cancelled),
        ("refused", &counters.refused),
    ];
    let results = results.map(|(name, counter)| (label("result", name), count(counter)));
    text.add("jobs_total", "counter", "Jobs by their result.", &results);
    let waiting = app.queue.waiting() as f64;
    text.one("queue_jobs", "gauge", "Jobs that wait.", waiting);
    let running = f64::from(u8::from(app.queue.running().is_some()));
    text.one("running_jobs", "gauge", "Jobs that are being made.", running);
    text.one("steps_total", "counter", "Steps of samplers.", count(&counters.steps));
    let taken = seconds(&counters.step_microseconds);
    text.one("step_seconds_total", "counter", "Time in steps of samplers.", taken);
    let waited = seconds(&counters.waited_microseconds);
    let help = "Time in which the device waited for weights, in steps.";
    text.one("weights_wait_seconds_total", "counter", help, waited);
    let streamed = count(&counters.streamed_bytes);
    text.one("streamed_bytes_total", "counter", "Weights read during pictures.", streamed);
    text.one("bundle_loads_total", "counter", "Bundles loaded.", count(&counters.loads));
    let account = &app.account;
    let mut planned = vec![(label("part", "plan"), account.plan_bytes as f64)];
    planned.extend(account.parts().map(|(name, bytes)| (label("part", name), bytes as f64)));
    text.add("memory_bound_bytes", "gauge", "Bounds of the parts of the memory.", &planned);
    let measured = MeasuredMemory::now(Default::default());
    let figures = [
        ("memory_process_bytes", "Memory of the process.", measured.process_bytes),
        ("memory_process_peak_bytes", "Its peak since the start.", measured.process_peak_bytes),
    ];
    for (name, help, value) in figures {
        if let Some(bytes) = value {
            text.one(name, "gauge", help, bytes as f64);
        }
    }
    let pictures = app.queue.pictures_bytes.load(Ordering::Relaxed) as f64;
    text.one("pictures_bytes", "gauge", "Finished pictures in memory.", pictures);
    let connections = app.connections.load(Ordering::Relaxed) as f64;
    text.one("connections", "gauge", "Open connections.", connections);
    let classes = app.requests.iter().enumerate();
    let classes =
        classes.map(|(at, counter)| (label("status", format!("{}xx", at + 1)), count(counter)));
    let help = "Answered requests by the class of their status.";
    text.add("requests_total", "counter", help, &classes.collect::<Vec<_>>());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text.0).into_response()
}
