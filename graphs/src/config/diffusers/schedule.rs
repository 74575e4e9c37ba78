//! The schedule of a diffusers folder.

use super::{File, Folder};
use crate::schedule::{BetaCurve, Prediction, Schedule, Spacing};
use serde_json::json;

/// The schedule of a folder. Without a configuration, and for what it leaves out, it is Stable
/// Diffusion's.
pub(super) fn schedule(folder: &Folder) -> Result<Schedule, String> {
    let text = folder.scheduler.as_deref().unwrap_or("{}");
    let file = File::parse("scheduler/scheduler_config.json", text)?;
    file.expect(&[("trained_betas", "null")])?;
    let (class, spacing): (String, String) = (
        file.read("_class_name", json!("DDIMScheduler"))?,
        file.read("timestep_spacing", json!("leading"))?,
    );
    let karras = file.read("use_karras_sigmas", json!(false))?;
    Ok(Schedule {
        beta_start: file.read("beta_start", json!(0.00085))?,
        beta_end: file.read("beta_end", json!(0.012))?,
        curve: file.one_of(
            "beta_schedule",
            "scaled_linear",
            &[("linear", BetaCurve::Linear), ("scaled_linear", BetaCurve::ScaledLinear)],
        )?,
        train_steps: file.number("num_train_timesteps", 1000)?,
        zero_snr: file.read("rescale_betas_zero_snr", json!(false))?,
        prediction: file.one_of(
            "prediction_type",
            "epsilon",
            &[
                ("epsilon", Prediction::Epsilon),
                ("v_prediction", Prediction::V),
                ("sample", Prediction::Sample),
            ],
        )?,
        sampler: sampler(&class, &file.read::<String>("algorithm_type", json!(""))?).to_string(),
        steps: if class == "LCMScheduler" || class == "TCDScheduler" { 4 } else { 20 },
        guidance: 7.5,
        spacing: match spacing.as_str() {
            _ if karras => Spacing::Karras,
            "trailing" => Spacing::Trailing,
            "linspace" => Spacing::Linspace,
            _ => Spacing::Leading,
        },
    })
}

/// The sampler of a scheduler's class and algorithm, by its name on the command line. DDIM stands
/// for a class that has none.
fn sampler(class: &str, algorithm: &str) -> &'static str {
    match class {
        "DPMSolverMultistepScheduler" if algorithm.starts_with("sde") => "dpm++2m-sde",
        "DPMSolverMultistepScheduler" => "dpm++2m",
        "HeunDiscreteScheduler" => "heun",
        "UniPCMultistepScheduler" => "unipc",
        "EulerDiscreteScheduler" => "euler",
        "EulerAncestralDiscreteScheduler" => "euler-a",
        "LCMScheduler" => "lcm",
        "TCDScheduler" => "tcd",
        _ => "ddim",
    }
}
