//! A checkpoint merged with a LoRA. `tools/kiln/tests/turbo.rs` holds the names of all layers to
//! diffusers.

use std::path::Path;

use anyhow::Result;
use kiln_compiler::weights::{TensorSource, lora, open};

use crate::fixtures::{self, Raw};

const LAYER: &str = "unet.down_blocks.0.resnets.0.conv1";
const WEIGHT: &str = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight";

/// A convolution of 2 to 3 channels, counted up from 0, with its bias.
fn base(folder: &Path) -> Box<dyn TensorSource> {
    let path = folder.join("base.safetensors");
    let values: Vec<f32> = (0..3 * 2 * 9).map(|v| v as f32).collect();
    let bias = WEIGHT.replace("weight", "bias");
    let tensors =
        [Raw::f32(WEIGHT, &[3, 2, 3, 3], &values), Raw::f32(&bias, &[3], &[1.0, 2.0, 3.0])];
    fixtures::write(&path, &fixtures::safetensors(&tensors));
    open(&path).unwrap()
}

fn merged(tensors: &[Raw]) -> Result<Box<dyn TensorSource>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    fixtures::write(&path, &fixtures::safetensors(tensors));
    lora::merge(base(folder.path()), &path)
}

/// Two directions: the first adds to the first output row, the second to the last.
fn change() -> [Raw; 2] {
    let down: Vec<f32> = [vec![1.0; 18], (0..18).map(|v| v as f32).collect()].concat();
    let up = [4.0, 0.0, 0.0, 0.0, 0.0, 2.0];
    [
        Raw::f32(&format!("{LAYER}.lora_A.weight"), &[2, 2, 3, 3], &down),
        Raw::f32(&format!("{LAYER}.lora_B.weight"), &[3, 2, 1, 1], &up),
    ]
}

#[test]
fn weights_are_changed_by_the_product() {
    let alpha = Raw::f32(&format!("{LAYER}.alpha"), &[], &[1.0]);
    for (scale, alpha) in [(1.0, None), (0.5, Some(alpha))] {
        let source = merged(&Vec::from_iter(change().into_iter().chain(alpha))).unwrap();
        let expected = |at: usize| match at / 18 {
            0 => at as f32 + scale * 4.0,
            2 => at as f32 + scale * 2.0 * (at % 18) as f32,
            _ => at as f32,
        };
        let whole: Vec<f32> = (0..54).map(expected).collect();
        assert_eq!(source.read_f32(WEIGHT).unwrap(), whole);
        assert_eq!(source.read_f32_range(WEIGHT, 13, 30).unwrap(), whole[13..43]);
        let bias = WEIGHT.replace("weight", "bias");
        assert_eq!(source.read_f32(&bias).unwrap(), [1.0, 2.0, 3.0]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |tensors: &[Raw], what: &str| {
        let error = format!("{:#}", merged(tensors).unwrap_err());
        assert!(error.contains(what) && error.contains("lora.safetensors"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    };
    let [down, up] = change();
    refused(std::slice::from_ref(&down), "lacks lora_A or lora_B");
    let narrow = Raw { shape: vec![4, 9], ..down.clone() };
    refused(&[narrow, up.clone()], "has shapes");
    let other = Raw { name: "lora_unet_conv.lora_down.weight".into(), ..up.clone() };
    refused(&[other], "no LoRA of a U-Net in the names of PEFT");
    let missing = Raw { name: up.name.replace("resnets.0", "resnets.7"), ..up };
    refused(&[missing], "changes a layer");
    refused(&[], "no tensors");
}
