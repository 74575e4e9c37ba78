//! Checkpoints that are not of the model are told before anything is planned.

use super::harness::{arg, kiln, kiln_err};
use super::{empty, said};
use std::fs;
use std::path::Path;

/// Writes a checkpoint of zeros in FP16.
pub fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let (mut entries, mut end) = (vec![], 0);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        entries.push(format!(
            "{name:?}:{{\"dtype\":\"F16\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end, 0);
    fs::write(path, file).expect("the target folder can be written");
}

#[test]
fn another_model_is_named_first_with_ten_of_its_tensors() {
    let folder = empty("checkpoint");
    let (weights, output) = (folder.join("w.safetensors"), folder.join("x.kiln"));
    let attention = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
    write(&weights, &[(attention, &[320, 768])]);
    let compile =
        ["compile", "--model", "sd21-base", "--weights", arg(&weights), "-o", arg(&output)];
    let output = kiln(&compile);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let lines: Vec<&str> = text.trim_end().lines().collect();
    assert!(lines[0].contains("w.safetensors: this is Stable Diffusion 1; "), "{text}");
    assert_eq!(lines.len(), 12, "{text}");
    assert!(lines[11].contains("more; --verbose lists them"), "{text}");
    let text = said(&kiln(&[&compile[..], &["--verbose"]].concat()));
    assert!(text.lines().count() > 600 && text.contains(attention), "{text}");
}

#[test]
fn a_known_model_of_other_shapes_is_named() {
    let output = empty("known").join("x.kiln");
    let weights = "models/emoji-256.safetensors.zst";
    let compile = ["compile", "--model", "sd21-base", "--weights", weights, "-o", arg(&output)];
    let line = kiln_err(&compile, 2);
    assert!(line.contains("emoji-256's, not sd21-base's; pass --model emoji-256"), "{line}");
}

#[test]
fn a_scheduler_that_contradicts_the_model_is_refused() {
    let folder = empty("scheduler");
    let output = folder.join("x.kiln");
    for part in ["scheduler", "text_encoder", "unet", "vae"] {
        fs::create_dir(folder.join(part)).expect("the target folder can be written");
    }
    for (part, file) in [
        ("text_encoder", "model.safetensors"),
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
    ] {
        write(&folder.join(part).join(file), &[]);
    }
    for (says, model, expected) in [
        ("v_prediction", "emoji-256", "epsilon"),
        ("v_prediction", "sd21-base", "epsilon"),
        ("epsilon", "sd21", "v_prediction"),
    ] {
        let config = format!("{{\"_class_name\":\"DDIMScheduler\",\"prediction_type\":{says:?}}}");
        fs::write(folder.join("scheduler/scheduler_config.json"), config).expect("written");
        let compile = ["compile", "--model", model, "--weights", arg(&folder), "-o", arg(&output)];
        let line = kiln_err(&compile, 2);
        assert!(line.contains(&format!("says that it predicts {says:?}, {model}")), "{line}");
        assert!(line.contains(&format!("predicts {expected:?}")), "{line}");
    }
}
