//! The layouts of single files, brought to one.
//!
//! | found | becomes |
//! |---|---|
//! | `state_dict.`, `module.` before a known name | the name |
//! | `conditioner.embedders.0.` of Stability's later code | `cond_stage_model.` |
//! | `cond_stage_model.transformer.` without `text_model.` | with it |
//! | transformers' names of a text encoder that may be OpenCLIP's | OpenCLIP's, beside them |
//! | diffusers' names in the autoencoder's attention, or its weights as matrices | Stability's |

use anyhow::{Result, bail};

use super::mapped::{Entry, Mapped};
use super::names::{self, Form, Target, TextLayout};
use super::{StoredType, TensorSource};

/// Beginnings of names in this layout.
const ROOTS: [&str; 5] =
    ["model.diffusion_model.", "model_ema.", "first_stage_model.", TEXT, EMBEDDER];
/// What programs that train put before them.
const WRAPPERS: [&str; 2] = ["state_dict.", "module."];
const TEXT: &str = "cond_stage_model.";
const EMBEDDER: &str = "conditioner.embedders.";

/// A single file under the names of the single-file layout.
///
/// Errors: two tensors have one name; parts of a tensor are missing or do not fit together; FP8
/// weights have scales.
pub(super) fn normalize(source: Box<dyn TensorSource>) -> Result<Box<dyn TensorSource>> {
    check_scales(source.as_ref())?;
    let stored = source.tensors();
    // Stable Diffusion XL has two text encoders.
    let is_xl = stored.iter().any(|t| t.name.contains("conditioner.embedders.1."));
    let names: Vec<String> = stored.iter().map(|t| without_wrappers(&t.name, is_xl)).collect();
    let token_table = "transformer.text_model.embeddings.token_embedding.weight";
    let tables = names.iter().zip(stored).filter(|(name, _)| name.ends_with(token_table));
    let layout = names::text_layout(tables.map(|(_, t)| t.shape.as_slice()).next());
    let named = |(tensor, name): (usize, &String)| {
        let own = Entry { source: 0, tensor, target: target(name) };
        // A text encoder of another width than CLIP's may still be CLIP's, in its own names.
        let of_text = name.strip_prefix("cond_stage_model.transformer.");
        let of_text = of_text.filter(|_| layout == TextLayout::OpenClip);
        let other = of_text.and_then(names::open_clip);
        let other = other.map(|target| Entry { source: 0, tensor, target });
        [Some(own), other].into_iter().flatten()
    };
    let entries: Vec<Entry> = names.iter().enumerate().flat_map(named).collect();
    let is_same = entries.len() == stored.len()
        && stored.iter().zip(&entries).all(|(t, Entry { target, .. })| {
            let shape = names::single_file_shape(&target.name, t.shape.clone());
            target.name == t.name && shape == t.shape
        });
    if is_same {
        return Ok(source);
    }
    let path = source.path().to_owned();
    Ok(Box::new(Mapped::new(&path, vec![source], entries)?))
}

/// The name behind what programs put before it, with one name for the text encoder.
fn without_wrappers(name: &str, is_xl: bool) -> String {
    let mut rest = name;
    while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| rest.strip_prefix(wrapper)) {
        rest = inner;
    }
    if !ROOTS.iter().any(|root| rest.starts_with(root)) {
        return name.to_owned();
    }
    let rest = match rest.strip_prefix("conditioner.embedders.0.") {
        Some(rest) if !is_xl => format!("{TEXT}{rest}"),
        _ => rest.to_owned(),
    };
    match rest.strip_prefix("cond_stage_model.transformer.") {
        Some(inner) if !inner.starts_with("text_model.") => {
            format!("{TEXT}transformer.text_model.{inner}")
        }
        _ => rest,
    }
}

/// The name with Stability's names in the autoencoder's attention.
fn target(name: &str) -> Target {
    let attention = name
        .split_once(".mid.attn_1.")
        .filter(|(half, _)| half.starts_with("first_stage_model."))
        .and_then(|(half, rest)| {
            Some((half, names::vae_attention(&rest.split('.').collect::<Vec<_>>())?))
        });
    let name = match attention {
        Some((half, rest)) => format!("{half}.mid.attn_1.{rest}"),
        None => name.to_owned(),
    };
    Target { name, form: Form::Whole }
}

/// Refuses FP8 weights with scales in tensors of their own, which would have to be applied.
fn check_scales(source: &dyn TensorSource) -> Result<()> {
    let is_fp8 = |dtype: &StoredType| matches!(dtype, StoredType::F8E4M3 | StoredType::F8E5M2);
    let is_scale = |name: &str| name.ends_with(".scale_weight") || name.ends_with(".weight_scale");
    let tensors = source.tensors();
    if tensors.iter().any(|t| is_fp8(&t.dtype)) && tensors.iter().any(|t| is_scale(&t.name)) {
        bail!(
            "{}: its FP8 weights have scales in tensors beside them, which are not applied; get \
             the file in FP16",
            source.path().display()
        );
    }
    Ok(())
}
