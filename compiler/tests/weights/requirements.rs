//! `check`: one error with every offender.

use kiln_compiler::weights::{Mismatch, Requirement, TensorSource, check, open};

use crate::fixtures::{self, Raw};

fn source(folder: &tempfile::TempDir) -> Box<dyn TensorSource> {
    let path = folder.path().join("small.safetensors");
    let tensors = [
        Raw::f32("block.0.conv.weight", &[2, 1], &[1.0, 2.0]),
        Raw::f32("block.0.conv_bias", &[2], &[1.0, 2.0]),
        Raw::f32("block.0.norm", &[2], &[1.0, 2.0]),
        Raw::new("quantized", "I8", &[2], vec![0; 2]),
    ];
    fixtures::write(&path, &fixtures::safetensors(&tensors));
    open(&path).unwrap()
}

fn require(list: &[(&str, &[usize])]) -> Vec<Requirement> {
    let one = |(name, shape): &(&str, &[usize])| Requirement {
        name: (*name).to_owned(),
        shape: shape.to_vec(),
    };
    list.iter().map(one).collect()
}

#[test]
fn extra_tensors_are_fine() {
    let folder = tempfile::tempdir().unwrap();
    check(&*source(&folder), &require(&[("block.0.norm", &[2])])).unwrap();
    check(&*source(&folder), &[]).unwrap();
}

#[test]
fn every_offender_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let required = require(&[
        ("block.0.norm", &[2]),
        ("block.0.conv.weight", &[2, 1, 1, 1]),
        ("block.0.conv.bias", &[2]),
        ("quantized", &[2]),
        ("something.else", &[1]),
    ]);
    let e = check(&*source(&folder), &required).unwrap_err().to_string();
    let lines: Vec<&str> = e.lines().map(str::trim).collect();
    let expected = "small.safetensors: 4 of 5 tensors of the model cannot be used";
    assert!(lines[0].ends_with(expected), "{e}");
    assert_eq!(
        lines[1..],
        [
            "block.0.conv.weight: shape [2, 1, 1, 1] expected, [2, 1] found",
            "block.0.conv.bias: missing (there is `block.0.conv_bias`)",
            "quantized: type I8 is not read, only F8, F16, BF16, F32, F64",
            "something.else: missing",
        ]
    );
}

#[test]
fn a_checkpoint_of_another_model_is_recognized_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let e = check(&*source(&folder), &require(&[("a", &[1]), ("b", &[1])])).unwrap_err();
    let e = e.to_string();
    let expected = "2 of 2 tensors of the model cannot be used, and none is there, but `block.0";
    assert!(e.contains(expected), "{e}");
}

#[test]
fn a_known_model_is_named_before_ten_of_its_offenders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let unet = "model.diffusion_model.input_blocks";
    let cross = format!("{unet}.1.1.transformer_blocks.0.attn2.to_k.weight");
    let first = format!("{unet}.0.0.weight");
    let required: Vec<Requirement> =
        (0..25).map(|n| Requirement { name: format!("t{n:02}"), shape: vec![1] }).collect();
    let empty = |name: &str, shape: &[usize]| {
        let count: usize = shape.iter().product();
        Raw::f32(name, shape, &vec![0.0; count])
    };
    for (tensors, expected) in [
        (vec![empty(&cross, &[2, 768])], "Stable Diffusion 1; "),
        (vec![empty(&cross, &[2, 2048])], "Stable Diffusion XL; "),
        (vec![empty(&cross, &[2, 1024]), empty(&first, &[1, 4, 3, 3])], "Stable Diffusion 2; "),
        (vec![empty(&cross, &[2, 1024]), empty(&first, &[1, 9, 3, 3])], "a model for inpainting"),
        (vec![empty("cond_stage_model.transformer.text_model.x", &[1])], "Stable Diffusion 1; "),
        (vec![empty("conditioner.embedders.1.model.x", &[1])], "Stable Diffusion XL; "),
        (vec![empty("model.diffusion_model.joint_blocks.0.x", &[1])], "Stable Diffusion 3; "),
        (vec![empty("double_blocks.0.img_attn.x", &[1])], "Flux; "),
        (vec![empty("lora_unet_down_blocks_0.lora_up.weight", &[1])], "a LoRA, "),
        (vec![empty("control_model.input_blocks.0.0.weight", &[1])], "a ControlNet, "),
        (vec![empty("decoder.conv_in.weight", &[1])], "an autoencoder alone; "),
        (vec![empty("input_blocks.0.0.weight", &[1, 4, 3, 3])], "a U-Net alone; "),
        (vec![empty("down_blocks.0.x", &[1]), empty("conv_in.bias", &[1])], "a U-Net alone; "),
    ] {
        fixtures::write(&path, &fixtures::safetensors(&tensors));
        let error = check(&*open(&path).unwrap(), &required).unwrap_err();
        let text = error.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains(&format!("other.safetensors: this is {expected}")), "{text}");
        assert_eq!(lines.len(), 12, "{text}");
        assert_eq!(lines[11], "  and 15 more; --verbose lists them");
        let full = error.downcast::<Mismatch>().unwrap().full();
        assert_eq!(full.lines().count(), 26, "{full}");
    }
}

#[test]
fn a_model_of_the_right_kind_is_not_called_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("named.safetensors");
    let cross = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    let required = require(&[(cross, &[2, 1024]), (first, &[1, 4, 3, 3]), ("other", &[1])]);
    let unet = |channels: usize| {
        let first = Raw::f32(first, &[1, channels, 3, 3], &vec![0.0; 9 * channels]);
        vec![Raw::f32(cross, &[2, 1024], &[0.0; 2048]), first]
    };
    for name in ["conditioner.embedders.0.x", "cond_stage_model.transformer.text_model.x"] {
        let tensors = [unet(4), vec![Raw::f32(name, &[1], &[0.0])]].concat();
        fixtures::write(&path, &fixtures::safetensors(&tensors));
        let text = check(&*open(&path).unwrap(), &required).unwrap_err().to_string();
        assert!(text.contains("named.safetensors: 1 of 3 tensors"), "{text}");
    }
    fixtures::write(&path, &fixtures::safetensors(&unet(9)));
    let text = check(&*open(&path).unwrap(), &required).unwrap_err().to_string();
    assert!(text.contains("this is a model for inpainting; 2 of 3 tensors"), "{text}");
}

#[test]
fn the_shipped_model_satisfies_its_own_list() {
    let source = open(&fixtures::emoji_path()).unwrap();
    let all = fixtures::emoji().iter();
    let required: Vec<Requirement> =
        all.map(|t| Requirement { name: t.name.clone(), shape: t.shape.clone() }).collect();
    check(&*source, &required).unwrap();
}
