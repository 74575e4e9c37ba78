//! Opens a checkpoint and checks that it is one of the model, before anything is planned.

use anyhow::{Context, Result, bail, ensure};
use kiln_compiler::Model;
use kiln_compiler::constants::check_model;
use kiln_compiler::weights::lora::{self, Lora};
use kiln_compiler::weights::{self, Mismatch, TensorSource, diffusers};
use kiln_graphs::config;
use std::io::{self, Write};
use std::path::Path;

use super::{Args, identify};
use crate::model::{Assembled, ConfiguredModel};

/// A model for each size of picture.
type Models = Vec<Box<dyn Model>>;

/// The model to compile, for each size of picture, and its weights. `named` is the model of
/// `--model`.
///
/// Errors: the file is no checkpoint, or one of another model; the requested encoder is missing.
pub fn open(
    args: &Args,
    named: Option<ConfiguredModel>,
    path: &Path,
) -> Result<(Models, Box<dyn TensorSource>)> {
    identify::check_pipeline(path)?;
    let source = weights::open(path).context("--weights")?;
    let source = merge(source, &args.lora)?;
    let sized = args.sized(identify::identify(named, source.as_ref())?)?;
    let model = &sized[0];
    check_inputs(model)?;
    let (around, tiny) = args.autoencoder.choose(&model.0, Some(source.as_ref()))?;
    let source = args.autoencoder.join(source, &model.0, &around, tiny)?;
    check_prediction(model, source.as_ref())?;
    let assembled = |model: &ConfiguredModel| -> Box<dyn Model> {
        Box::new(Assembled { model: model.clone(), around: around.clone() })
    };
    let models: Vec<_> = sized.iter().map(assembled).collect();
    check_tensors(args, model, models[0].as_ref(), source.as_ref())?;
    identify::check_unread(model, source.as_ref())?;
    Ok((models, source))
}

/// Merges LoRAs, and says which of their layers the model has not.
pub fn merge(source: Box<dyn TensorSource>, loras: &[Lora]) -> Result<Box<dyn TensorSource>> {
    /// Most layers that are listed.
    const LISTED: usize = 10;
    if loras.is_empty() {
        return Ok(source);
    }
    let (merged, unmatched) = lora::merge(source, loras).context("--lora")?;
    for (path, layers) in unmatched {
        let listed = layers[..layers.len().min(LISTED)].join(", ");
        let more = match layers.len().checked_sub(LISTED) {
            Some(more @ 1..) => format!(" and {more} more"),
            _ => String::new(),
        };
        let path = path.display();
        let _ = writeln!(
            io::stderr(),
            "warning: --lora {path}: left out, as the model has no such layers: {listed}{more}"
        );
    }
    Ok(merged)
}

/// Refuses a model with an input that the runtime does not provide.
pub fn check_inputs(model: &ConfiguredModel) -> Result<()> {
    ensure!(
        model.0.unet.classes.is_none(),
        "{} reads a class, which kiln run cannot give it",
        model.0.name
    );
    Ok(())
}

/// Checks that a folder's scheduler expects what the U-Net predicts.
fn check_prediction(model: &ConfiguredModel, source: &dyn TensorSource) -> Result<()> {
    let expected = model.manifest().schedule.prediction.diffusers_name();
    match diffusers::prediction_type(source.path())? {
        Some(found) if found != expected => bail!(
            "{}: its scheduler says that it predicts {found:?}, {} predicts {expected:?}; compile \
             it as a model that predicts the same",
            source.path().display(),
            model.0.name
        ),
        _ => Ok(()),
    }
}

/// Checks that the checkpoint has the tensors of the model. `assembled` is the model with the
/// networks of the bundle.
fn check_tensors(
    args: &Args,
    model: &ConfiguredModel,
    assembled: &dyn Model,
    source: &dyn TensorSource,
) -> Result<()> {
    let Err(error) = check_model(assembled, source) else { return Ok(()) };
    let Some(mismatch) = error.downcast_ref::<Mismatch>() else { return Err(error) };
    // Without this condition, a checkpoint that lacks the image encoder alone would get the advice.
    let is_other = check_model(model, source).is_err();
    let mut known = config::models().iter().map(|known| ConfiguredModel(known.clone()));
    if let Some(other) = known.find(|known| is_other && identify::fits(known, source)) {
        let (path, other, name) = (source.path().display(), &other.0.name, &model.0.name);
        bail!("{path}: these shapes are {other}'s, not {name}'s; pass --model {other}");
    }
    if args.verbose {
        bail!(mismatch.full());
    }
    Err(error)
}
