//! What the server offers, what it takes, and what it is doing.

use axum::extract::State;
use axum::response::Response;
use kiln_bundle::plan::Spacing;
use kiln_runtime::pipeline::sampler::SAMPLERS;
use kiln_runtime::report::MeasuredMemory;
use serde_json::{Value, json};

use super::{App, Shared};
use crate::account::{BODY_BYTES, PROMPT_BYTES};
use crate::models::Model;
use crate::order::MAX_COUNT;

pub async fn server(State(app): State<Shared>) -> Response {
    let samplers = SAMPLERS.iter().map(|entry| {
        json!({
            "name": entry.name,
            "title": entry.title,
            "spacings": entry.spacings.iter().map(|s| Spacing::name(*s)).collect::<Vec<_>>(),
            "has_own": entry.has_own,
            "eta": entry.eta,
        })
    });
    let models = app.models.all();
    super::json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "models": models.iter().map(Model::card).collect::<Vec<_>>(),
        "default_model": models[app.default_model()].name,
        "samplers": samplers.collect::<Vec<_>>(),
        "queue": {
            "waiting": app.queue.waiting(),
            "capacity": app.queue.capacity(),
            "running": app.queue.running().map(|job| job.id.clone()),
        },
        "limits": {
            "body_bytes": BODY_BYTES,
            "prompt_bytes": PROMPT_BYTES,
            "count": MAX_COUNT,
        },
        "memory": memory(&app),
        "has_token": app.guard.needs_token(),
    }))
}

/// Memory as it is bounded and as it is measured.
fn memory(app: &App) -> Value {
    let account = &app.account;
    let parts = account.parts().map(|(name, bytes)| (format!("{name}_bytes"), json!(bytes)));
    let measured = MeasuredMemory::now(Default::default());
    json!({
        "plan_bytes": account.plan_bytes,
        "server_bytes": account.server_bytes(),
        "total_bytes": account.total_bytes(),
        "server": serde_json::Map::from_iter(parts),
        "process_bytes": measured.process_bytes,
        "process_peak_bytes": measured.process_peak_bytes,
    })
}
