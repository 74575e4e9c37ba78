//! Single files in every layout that programs write give the same tensors.

use kiln_compiler::weights::open;

use crate::fixtures::{self, Raw, emoji};

const ATTENTION: &str = "first_stage_model.decoder.mid.attn_1.";

/// The shipped model without what only training needs.
fn model() -> Vec<Raw> {
    let unused = ["betas", "alphas_cumprod"];
    let is_used = |t: &&Raw| !unused.contains(&&*t.name) && !t.name.contains(".text_projection");
    emoji().iter().filter(is_used).filter(|t| !t.name.ends_with("logit_scale")).cloned().collect()
}

/// The model as programs write it that agree on no name: behind a prefix, with transformers' text
/// encoder and matrices in the autoencoder's attention.
pub fn other_layout() -> Vec<Raw> {
    let prefix = "conditioner.embedders.0.transformer.text_model.";
    let mut tensors: Vec<Raw> = model().iter().flat_map(|t| transformers(t, prefix)).collect();
    tensors.iter_mut().for_each(flatten_attention);
    tensors.iter_mut().for_each(|t| t.name = format!("state_dict.{}", t.name));
    tensors
}

/// Stores the projections of the autoencoder's attention as matrices.
fn flatten_attention(tensor: &mut Raw) {
    if tensor.name.starts_with(ATTENTION) && tensor.shape.len() == 4 {
        tensor.shape.truncate(2);
    }
}

/// The tensors after a change of each name, or of each tensor.
fn changed(change: impl Fn(&mut Raw)) -> Vec<Raw> {
    let mut tensors = model();
    tensors.iter_mut().for_each(change);
    tensors
}

/// Every tensor of the model is read from a file of `tensors` under its name, with its values.
fn assert_same(layout: &str, tensors: &[Raw]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fixtures::write(&path, &fixtures::safetensors(tensors));
    let source = open(&path).unwrap_or_else(|error| panic!("{layout}: {error:#}"));
    for expected in model() {
        let name = &expected.name;
        let info = source.info(name).unwrap_or_else(|| panic!("{layout}: {name} is missing"));
        assert_eq!(info.shape, expected.shape, "{layout}: {name}");
        assert_eq!(source.read_f32(name).unwrap(), expected.values(), "{layout}: {name}");
    }
}

/// An OpenCLIP text encoder in transformers' names, which have query, key and value apart.
fn transformers(tensor: &Raw, prefix: &str) -> Vec<Raw> {
    let Some(own) = tensor.name.strip_prefix("cond_stage_model.model.") else {
        return vec![tensor.clone()];
    };
    let renamed = |name: String| Raw { name: format!("{prefix}{name}"), ..tensor.clone() };
    let Some(layer) = own.strip_prefix("transformer.resblocks.") else {
        let name = match own {
            "token_embedding.weight" => "embeddings.token_embedding.weight".to_owned(),
            "positional_embedding" => "embeddings.position_embedding.weight".to_owned(),
            other => other.replace("ln_final", "final_layer_norm"),
        };
        return vec![renamed(name)];
    };
    let (layer, rest) = layer.split_once('.').unwrap();
    let path = format!("encoder.layers.{layer}");
    if let Some(leaf) = rest.strip_prefix("attn.in_proj_") {
        let mut shape = tensor.shape.clone();
        shape[0] /= 3;
        let parts = ["q", "k", "v"].iter().zip(tensor.bytes.chunks_exact(tensor.bytes.len() / 3));
        let part = |(part, bytes): (&&str, &[u8])| {
            let name = format!("{prefix}{path}.self_attn.{part}_proj.{leaf}");
            Raw::new(&name, tensor.dtype, &shape, bytes.to_vec())
        };
        return parts.map(part).collect();
    }
    let names = [
        ("attn.out_proj", "self_attn.out_proj"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
    ];
    let (from, to) = names.iter().find(|(from, _)| rest.starts_with(from)).unwrap();
    vec![renamed(format!("{path}.{}", rest.replacen(from, to, 1)))]
}

#[test]
fn names_behind_the_prefixes_of_programs() {
    for prefix in ["state_dict.", "module.", "state_dict.module."] {
        assert_same(prefix, &changed(|t| t.name = format!("{prefix}{}", t.name)));
    }
    let text = "conditioner.embedders.0.";
    assert_same(text, &changed(|t| t.name = t.name.replace("cond_stage_model.", text)));
}

#[test]
fn a_text_encoder_in_the_names_of_transformers() {
    let prefixes = [
        "cond_stage_model.transformer.text_model.",
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.text_model.",
    ];
    for prefix in prefixes {
        let tensors: Vec<Raw> = model().iter().flat_map(|t| transformers(t, prefix)).collect();
        assert_same(prefix, &tensors);
    }
}

#[test]
fn attention_of_the_autoencoder_in_other_names_and_shapes() {
    let newer = [("q.", "to_q."), ("k.", "to_k."), ("v.", "to_v."), ("proj_out.", "to_out.0.")];
    let older = [("q.", "query."), ("k.", "key."), ("v.", "value."), ("proj_out.", "proj_attn.")];
    for names in [newer, older] {
        let rename = |t: &mut Raw| {
            let Some(own) = t.name.strip_prefix(ATTENTION) else { return };
            let norm = [("norm.", "group_norm.")];
            let found = names.iter().chain(&norm).find(|(from, _)| own.starts_with(from));
            let (from, to) = found.unwrap();
            t.name = format!("{ATTENTION}{}", own.replacen(from, to, 1));
        };
        assert_same(names[0].1, &changed(rename));
    }
    assert_same("matrices", &changed(flatten_attention));
}

#[test]
fn a_tensor_under_two_names_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let name = "first_stage_model.decoder.conv_in.bias";
    let tensors = [Raw::f32(name, &[1], &[1.0]), Raw::f32(&format!("module.{name}"), &[1], &[2.0])];
    fixtures::write(&path, &fixtures::safetensors(&tensors));
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("two names") && error.contains("model.safetensors"), "{error}");
    let scaled =
        [Raw::new("a.weight", "F8_E4M3", &[1], vec![0]), Raw::f32("a.scale_weight", &[1], &[2.0])];
    fixtures::write(&path, &fixtures::safetensors(&scaled));
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("scales") && !error.contains('\n'), "{error}");
}
