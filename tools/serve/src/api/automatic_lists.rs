//! The lists of AUTOMATIC1111's interface. What this server does not have is an empty list.

use axum::extract::State;
use axum::response::Response;
use kiln_bundle::plan::Spacing;
use kiln_runtime::pipeline::sampler::SAMPLERS;
use kiln_runtime::report::MeasuredMemory;
use serde_json::{Value, json};

use super::{Shared, json};

pub async fn none() -> Response {
    json(json!([]))
}

pub async fn nothing() -> Response {
    json(Value::Null)
}

pub async fn sd_models(State(app): State<Shared>) -> Response {
    let models = app.models.all().iter().map(|model| {
        json!({
            "title": model.name,
            "model_name": model.name,
            "hash": null,
            "sha256": null,
            "filename": format!("{}.kiln", model.name),
            "config": null,
        })
    });
    json(models.collect::<Vec<_>>())
}

pub async fn samplers() -> Response {
    let samplers = SAMPLERS
        .iter()
        .map(|entry| json!({ "name": entry.title, "aliases": [entry.name], "options": {} }));
    json(samplers.collect::<Vec<_>>())
}

pub async fn schedulers() -> Response {
    let own = Spacing::ALL.map(Spacing::name);
    let names = ["automatic"].into_iter().chain(own);
    let schedulers = names.map(|name| {
        let mut label = name.to_owned();
        label[..1].make_ascii_uppercase();
        json!({
            "name": name, "label": label, "aliases": null,
            "default_rho": -1, "need_inner_model": false,
        })
    });
    json(schedulers.collect::<Vec<_>>())
}

pub async fn cmd_flags() -> Response {
    json(json!({ "api": true, "listen": false, "port": null, "no_half": false }))
}

pub async fn scripts() -> Response {
    json(json!({ "txt2img": [], "img2img": [] }))
}

pub async fn embeddings() -> Response {
    json(json!({ "loaded": {}, "skipped": {} }))
}

/// The bound of the process in place of the machine's memory.
pub async fn memory(State(app): State<Shared>) -> Response {
    let (total, used) = (app.account.total_bytes(), MeasuredMemory::now(Default::default()));
    let used = used.process_bytes.unwrap_or(0);
    let ram = json!({ "total": total, "used": used, "free": total.saturating_sub(used) });
    json(json!({ "ram": ram, "cuda": {} }))
}
