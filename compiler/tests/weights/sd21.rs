//! Stable Diffusion 2.1-base at full size, names and shapes only: diffusers' module tree, written
//! down from its three config files, must come out as the single file's listing.

use std::collections::BTreeMap;

use kiln_compiler::weights::open;

use crate::fixtures;

type Tensors = Vec<(String, Vec<usize>)>;

fn affine(out: &mut Tensors, name: &str, weight: &[usize]) {
    out.push((format!("{name}.weight"), weight.to_vec()));
    out.push((format!("{name}.bias"), vec![weight[0]]));
}

fn resnet(out: &mut Tensors, name: &str, from: usize, to: usize, time: Option<usize>) {
    affine(out, &format!("{name}.norm1"), &[from]);
    affine(out, &format!("{name}.conv1"), &[to, from, 3, 3]);
    if let Some(time) = time {
        affine(out, &format!("{name}.time_emb_proj"), &[to, time]);
    }
    affine(out, &format!("{name}.norm2"), &[to]);
    affine(out, &format!("{name}.conv2"), &[to, to, 3, 3]);
    if from != to {
        affine(out, &format!("{name}.conv_shortcut"), &[to, from, 1, 1]);
    }
}

fn transformer(out: &mut Tensors, name: &str, c: usize, context: usize) {
    for module in ["norm", "proj_in", "proj_out"] {
        let weight: &[usize] = if module == "norm" { &[c] } else { &[c, c] };
        affine(out, &format!("{name}.{module}"), weight);
    }
    let block = format!("{name}.transformer_blocks.0");
    for n in 1..=3 {
        affine(out, &format!("{block}.norm{n}"), &[c]);
    }
    for (attn, from) in [("attn1", c), ("attn2", context)] {
        out.push((format!("{block}.{attn}.to_q.weight"), vec![c, c]));
        out.push((format!("{block}.{attn}.to_k.weight"), vec![c, from]));
        out.push((format!("{block}.{attn}.to_v.weight"), vec![c, from]));
        affine(out, &format!("{block}.{attn}.to_out.0"), &[c, c]);
    }
    affine(out, &format!("{block}.ff.net.0.proj"), &[8 * c, c]);
    affine(out, &format!("{block}.ff.net.2"), &[c, 4 * c]);
}

fn unet() -> Tensors {
    let channels = [320, 640, 1280, 1280];
    let (time, context) = (Some(1280), 1024);
    let mut out = Vec::new();
    affine(&mut out, "conv_in", &[320, 4, 3, 3]);
    affine(&mut out, "time_embedding.linear_1", &[1280, 320]);
    affine(&mut out, "time_embedding.linear_2", &[1280, 1280]);
    let mut skips = vec![320];
    let mut from = 320;
    for (i, c) in channels.into_iter().enumerate() {
        for j in 0..2 {
            resnet(&mut out, &format!("down_blocks.{i}.resnets.{j}"), from, c, time);
            if i < 3 {
                transformer(&mut out, &format!("down_blocks.{i}.attentions.{j}"), c, context);
            }
            from = c;
            skips.push(c);
        }
        if i < 3 {
            affine(&mut out, &format!("down_blocks.{i}.downsamplers.0.conv"), &[c, c, 3, 3]);
            skips.push(c);
        }
    }
    resnet(&mut out, "mid_block.resnets.0", 1280, 1280, time);
    transformer(&mut out, "mid_block.attentions.0", 1280, context);
    resnet(&mut out, "mid_block.resnets.1", 1280, 1280, time);
    for (i, c) in channels.into_iter().rev().enumerate() {
        for j in 0..3 {
            let skip = skips.pop().unwrap();
            resnet(&mut out, &format!("up_blocks.{i}.resnets.{j}"), from + skip, c, time);
            if i > 0 {
                transformer(&mut out, &format!("up_blocks.{i}.attentions.{j}"), c, context);
            }
            from = c;
        }
        if i < 3 {
            affine(&mut out, &format!("up_blocks.{i}.upsamplers.0.conv"), &[c, c, 3, 3]);
        }
    }
    affine(&mut out, "conv_norm_out", &[320]);
    affine(&mut out, "conv_out", &[4, 320, 3, 3]);
    out
}

fn vae_mid(out: &mut Tensors, half: &str) {
    resnet(out, &format!("{half}.mid_block.resnets.0"), 512, 512, None);
    resnet(out, &format!("{half}.mid_block.resnets.1"), 512, 512, None);
    affine(out, &format!("{half}.mid_block.attentions.0.group_norm"), &[512]);
    for proj in ["to_q", "to_k", "to_v", "to_out.0"] {
        affine(out, &format!("{half}.mid_block.attentions.0.{proj}"), &[512, 512]);
    }
}

fn vae() -> Tensors {
    let channels = [128, 256, 512, 512];
    let mut out = Vec::new();
    affine(&mut out, "encoder.conv_in", &[128, 3, 3, 3]);
    let mut from = 128;
    for (i, c) in channels.into_iter().enumerate() {
        for j in 0..2 {
            resnet(&mut out, &format!("encoder.down_blocks.{i}.resnets.{j}"), from, c, None);
            from = c;
        }
        if i < 3 {
            let name = format!("encoder.down_blocks.{i}.downsamplers.0.conv");
            affine(&mut out, &name, &[c, c, 3, 3]);
        }
    }
    vae_mid(&mut out, "encoder");
    affine(&mut out, "encoder.conv_norm_out", &[512]);
    affine(&mut out, "encoder.conv_out", &[8, 512, 3, 3]);
    affine(&mut out, "quant_conv", &[8, 8, 1, 1]);
    affine(&mut out, "post_quant_conv", &[4, 4, 1, 1]);
    affine(&mut out, "decoder.conv_in", &[512, 4, 3, 3]);
    vae_mid(&mut out, "decoder");
    for (i, c) in channels.into_iter().rev().enumerate() {
        for j in 0..3 {
            resnet(&mut out, &format!("decoder.up_blocks.{i}.resnets.{j}"), from, c, None);
            from = c;
        }
        if i < 3 {
            let name = format!("decoder.up_blocks.{i}.upsamplers.0.conv");
            affine(&mut out, &name, &[c, c, 3, 3]);
        }
    }
    affine(&mut out, "decoder.conv_norm_out", &[128]);
    affine(&mut out, "decoder.conv_out", &[3, 128, 3, 3]);
    out
}

fn text_encoder() -> Tensors {
    let mut out = vec![
        ("text_model.embeddings.token_embedding.weight".to_owned(), vec![49408, 1024]),
        ("text_model.embeddings.position_embedding.weight".to_owned(), vec![77, 1024]),
    ];
    for i in 0..23 {
        let layer = format!("text_model.encoder.layers.{i}");
        for proj in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            affine(&mut out, &format!("{layer}.self_attn.{proj}"), &[1024, 1024]);
        }
        affine(&mut out, &format!("{layer}.layer_norm1"), &[1024]);
        affine(&mut out, &format!("{layer}.layer_norm2"), &[1024]);
        affine(&mut out, &format!("{layer}.mlp.fc1"), &[4096, 1024]);
        affine(&mut out, &format!("{layer}.mlp.fc2"), &[1024, 4096]);
    }
    affine(&mut out, "text_model.final_layer_norm", &[1024]);
    out
}

#[test]
fn diffusers_names_of_sd21_give_the_single_files_names_and_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |file: &str, tensors: Tensors| fixtures::write_sparse(&folder.path().join(file), &tensors);
    write("text_encoder/model.fp16.safetensors", text_encoder());
    write("unet/diffusion_pytorch_model.fp16.safetensors", unet());
    write("vae/diffusion_pytorch_model.fp16.safetensors", vae());
    let source = open(folder.path()).unwrap();
    let found: BTreeMap<String, Vec<usize>> =
        source.tensors().iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    let listing =
        std::fs::read(fixtures::repository_path("tools/synth/sd21_tensors.json")).unwrap();
    let mut want: BTreeMap<String, Vec<usize>> = serde_json::from_slice(&listing).unwrap();
    want.retain(|name, _| {
        name.contains('.')
            && !name.contains(".resblocks.23.")
            && !name.ends_with(".logit_scale")
            && !name.ends_with(".text_projection")
    });
    let missing: Vec<_> = want.keys().filter(|n| !found.contains_key(*n)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(found, want);
}
