//! Which model a checkpoint is: by `--model`, by the configurations of a diffusers folder, or by
//! names and shapes of its tensors.

use anyhow::{Context, Result, anyhow, bail};
use kiln_compiler::constants::{check_model, unread_tensor};
use kiln_compiler::weights::{self, TensorSource};
use kiln_graphs::config::{self, ModelConfig, diffusers};
use serde::Deserialize;
use std::path::Path;

use super::super::print;
use crate::model::ConfiguredModel;

/// Keys of a U-Net's tensors. A model that leaves some of them unread is another model.
const UNET: &str = "model.diffusion_model.";

/// The model to compile: `named` is that of `--model`.
///
/// Errors: the folder's configurations contradict `--model`, or are of a model that is not built;
/// the tensors are of no known model.
pub fn identify(
    named: Option<ConfiguredModel>,
    source: &dyn TensorSource,
) -> Result<ConfiguredModel> {
    let path = source.path();
    let described = described(path)?;
    match (named, described) {
        (Some(named), None) => Ok(named),
        (Some(named), Some(found)) => {
            if let Some((field, found, wanted)) = found.difference(&named.0) {
                let (shown, name) = (path.display(), &named.0.name);
                bail!(
                    "{shown}: its configurations say that {field} is {found}, of {name} it is \
                     {wanted}; leave --model out to compile what the folder describes"
                );
            }
            Ok(named)
        }
        (None, Some(found)) => Ok(ConfiguredModel(found)),
        (None, None) => recognized(source),
    }
}

/// The model that a diffusers folder describes. `None` for other checkpoints and for folders
/// without configurations.
fn described(path: &Path) -> Result<Option<ModelConfig>> {
    let read = |file: &str| std::fs::read_to_string(path.join(file)).ok();
    let [unet, text_encoder, vae] =
        ["unet", "text_encoder", "vae"].map(|part| read(&format!("{part}/config.json")));
    let (Some(unet), Some(text_encoder), Some(vae)) = (unet, text_encoder, vae) else {
        return Ok(None);
    };
    let scheduler = read("scheduler/scheduler_config.json");
    let folder = diffusers::Folder { unet, text_encoder, vae, scheduler };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let found = diffusers::from_diffusers(&name, &folder);
    let mut found = found.map_err(|error| anyhow!("{}/{}", path.display(), error.what))?;
    let known = config::models().iter().rev().filter(|known| found.difference(known).is_none());
    // The first of those that fit best.
    let runs_alike = |known: &ModelConfig| {
        let (known, found) = (&known.schedule, &found.schedule);
        (&known.sampler, known.spacing) == (&found.sampler, found.spacing)
    };
    let fit = |known: &&ModelConfig| (known.latent_px() == found.latent_px(), runs_alike(known));
    if let Some(known) = known.max_by_key(fit) {
        if runs_alike(known) {
            found.schedule = found.schedule.with_defaults_of(&known.schedule);
        }
        found.name = known.name.clone();
    }
    Ok(Some(found))
}

/// Refuses a diffusers folder of a pipeline that Kiln does not compile, before its parts are
/// missed.
pub fn check_pipeline(path: &Path) -> Result<()> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(rename = "_class_name")]
        class: String,
    }
    let index = path.join("model_index.json");
    let Ok(text) = std::fs::read_to_string(&index) else { return Ok(()) };
    let Index { class } =
        serde_json::from_str(&text).with_context(|| format!("{}", index.display()))?;
    let of_family = class.starts_with("StableDiffusion") || class.starts_with("LatentConsistency");
    if !of_family || class.contains("XL") || class.starts_with("StableDiffusion3") {
        bail!("{}: this is for {class}; Kiln compiles Stable Diffusion 1 and 2", path.display());
    }
    Ok(())
}

/// The known model whose tensors a checkpoint has.
fn recognized(source: &dyn TensorSource) -> Result<ConfiguredModel> {
    let known = config::models().iter().map(|known| ConfiguredModel(known.clone()));
    let fitting: Vec<_> = known.filter(|known| fits(known, source)).collect();
    let path = source.path().display();
    let Some(first) = fitting.first().cloned() else {
        let kind = weights::kind(source).map(|kind| format!("this is {kind}; "));
        bail!(
            "{path}: {}no model that Kiln compiles has these tensors; --model NAME lists the \
             differences",
            kind.unwrap_or_default()
        );
    };
    let others: Vec<_> = fitting[1..].iter().map(|other| &*other.0.name).collect();
    if !others.is_empty() {
        let (name, others) = (&first.0.name, others.join(" and "));
        print::line(format_args!("{path}: taken for {name}; {others} have the same shapes"))?;
    }
    Ok(first)
}

/// Whether a checkpoint has all tensors of a model, and its U-Net no others.
pub fn fits(model: &ConfiguredModel, source: &dyn TensorSource) -> bool {
    let all_read = || unread_tensor(model, source, UNET).is_ok_and(|unread| unread.is_none());
    check_model(model, source).is_ok() && all_read()
}

/// Checks that the U-Net of a checkpoint has no tensors that the model does not read.
pub fn check_unread(model: &ConfiguredModel, source: &dyn TensorSource) -> Result<()> {
    let Some(tensor) = unread_tensor(model, source, UNET)? else { return Ok(()) };
    let (path, name) = (source.path().display(), &model.0.name);
    bail!(
        "{path}: this is another model than {name}, which has no tensor {tensor}; leave --model out"
    );
}
