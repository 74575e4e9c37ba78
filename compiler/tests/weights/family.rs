//! Models of the family as diffusers builds them: `tests/data/make_family.py`.
//!
//! The published models' folders must give the tensors that the graphs of their descriptions read.
//! Small models of the same structures must evaluate to diffusers' outputs.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use kiln_compiler::weights::{TensorSource, open};
use kiln_graphs::config::{ModelConfig, diffusers, model};
use kiln_graphs::{text_encoder, unet, vae_decoder, vae_encoder};
use kiln_ir::{Graph, NodeKind, Tensor, reference};
use safetensors::SafeTensors;

use crate::fixtures::{self, Raw};

/// Largest relative L2 distance from diffusers' outputs.
const TOLERANCE: f64 = 1e-5;
/// Timestep and class of the script.
const TIMESTEP: f32 = 501.0;
const CLASS: f32 = 3.0;

/// A model in the script's text.
#[derive(Default)]
struct Listed {
    name: String,
    configs: BTreeMap<String, String>,
    /// Folder, name and shape of each tensor.
    tensors: Vec<(String, String, Vec<usize>)>,
}

fn data(file: &str) -> Vec<u8> {
    fs::read(fixtures::repository_path("compiler/tests/data").join(file)).unwrap()
}

fn listed() -> Vec<Listed> {
    let mut text = String::new();
    let packed = data("family.txt.zst");
    let mut stream = ruzstd::decoding::StreamingDecoder::new(&packed[..]).unwrap();
    std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
    let mut models: Vec<Listed> = vec![];
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ').unwrap();
        if kind == "model" {
            models.push(Listed { name: rest.to_owned(), ..Listed::default() });
            continue;
        }
        let (folder, rest) = rest.split_once(' ').unwrap();
        let model = models.last_mut().unwrap();
        if kind == "config" {
            model.configs.insert(folder.to_owned(), rest.to_owned());
            continue;
        }
        let (name, shape) = rest.split_once(' ').unwrap();
        let shape = shape.split('x').map(|d| d.parse().unwrap()).collect();
        model.tensors.push((folder.to_owned(), name.to_owned(), shape));
    }
    models
}

impl Listed {
    fn is_small(&self) -> bool {
        self.name.starts_with("small-")
    }

    fn describe(&self) -> ModelConfig {
        let text = |folder: &str| self.configs[folder].clone();
        let folder = diffusers::Folder {
            unet: text("unet"),
            text_encoder: text("text_encoder"),
            vae: text("vae"),
            scheduler: Some(text("scheduler")),
        };
        diffusers::from_diffusers(&self.name, &folder).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Writes a folder. Tensors of full size are sparse zeros.
    fn write(&self, path: &Path) -> Box<dyn TensorSource> {
        for (folder, stem) in [
            ("unet", "diffusion_pytorch_model"),
            ("text_encoder", "model"),
            ("vae", "diffusion_pytorch_model"),
        ] {
            let file = path.join(folder).join(format!("{stem}.safetensors"));
            let mine = self.tensors.iter().filter(|(of, ..)| of == folder);
            if self.is_small() {
                let raw = mine.map(|(_, name, shape)| {
                    Raw::f32(name, shape, &values(&format!("{folder}/{name}"), shape))
                });
                fixtures::write(&file, &fixtures::safetensors(&raw.collect::<Vec<_>>()));
            } else {
                let named: Vec<_> = mine.map(|(_, n, s)| (n.clone(), s.clone())).collect();
                fixtures::write_sparse(&file, &named);
            }
            fs::write(path.join(folder).join("config.json"), &self.configs[folder]).unwrap();
        }
        open(path).unwrap()
    }
}

/// The script's `values`.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    let unit = |i: usize| {
        let mut x = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        (x >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    let fan_in: usize = shape[1..].iter().product();
    let scale = |u: f64| match shape.len() {
        1 if name.ends_with(".weight") => 1.0 + 0.2 * u,
        1 => 0.1 * u,
        _ if name.contains("input") => 1.5 * u,
        _ => u * (3.0 / fan_in as f64).sqrt(),
    };
    (0..shape.iter().product()).map(|i| scale(unit(i)) as f32).collect()
}

/// An input of the script, channels last.
fn given(name: &str, shape: &[usize]) -> Tensor {
    let values = values(&format!("input/{name}"), shape);
    channels_last(shape, &values)
}

fn channels_last(shape: &[usize], values: &[f32]) -> Tensor {
    let &[n, c, h, w] = shape else { return Tensor::new(shape, values.to_vec()) };
    let at = |i: usize| {
        let (image, pixel, channel) = (i / (c * h * w), i / c % (h * w), i % c);
        values[(image * c + channel) * h * w + pixel]
    };
    Tensor::new(&[n, h, w, c], (0..values.len()).map(at).collect())
}

fn graphs(config: &ModelConfig) -> [Graph; 4] {
    [
        text_encoder(config, 1).unwrap(),
        unet(config, 2).unwrap(),
        vae_decoder(config).unwrap(),
        vae_encoder(config).unwrap(),
    ]
}

fn required(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut tensors = BTreeMap::new();
    for graph in graphs(config) {
        for id in graph.ids() {
            if let NodeKind::Weight(expr) = &graph.node(id).kind {
                let named = expr.tensors().into_iter();
                tensors.extend(named.map(|(key, shape)| (key.to_string(), shape.to_vec())));
            }
        }
    }
    tensors
}

#[test]
fn folders_of_published_models_have_the_tensors_of_their_descriptions() {
    let models = listed();
    let published: Vec<_> = models.iter().filter(|m| !m.is_small()).collect();
    assert_eq!(published.len(), 9);
    for listed in published {
        let folder = tempfile::tempdir().unwrap();
        let source = listed.write(folder.path());
        let found: BTreeMap<String, Vec<usize>> =
            source.tensors().iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
        let of_folder = listed.describe();
        assert_eq!(found, required(&of_folder), "{}", listed.name);
        let Some(known) = model(&listed.name) else { continue };
        assert_eq!(known.difference(&of_folder), None, "{}", listed.name);
        assert_eq!(known.latent_px(), of_folder.latent_px(), "{}", listed.name);
    }
}

/// Evaluates a graph of one output.
fn evaluate(graph: &Graph, source: &dyn TensorSource, inputs: HashMap<String, Tensor>) -> Tensor {
    let weight = |key: &str| -> Result<Tensor, Box<dyn std::error::Error + Send + Sync>> {
        let shape = source.info(key).ok_or("no such tensor")?.shape.clone();
        Ok(Tensor::new(&shape, source.read_f32(key)?))
    };
    let mut outputs = reference::evaluate(graph, &inputs, &weight).unwrap();
    outputs.remove(0).1
}

/// Inputs of a network, as the script makes them.
fn inputs(graph: &Graph, model: &ModelConfig) -> HashMap<String, Tensor> {
    let ([height, width], text) = (model.latent_px(), model.context_tokens);
    let named = |id: kiln_ir::ValueId| {
        let (name, shape) = (&graph.node(id).name, &graph.ty(id).shape);
        let value = match name.as_str() {
            "tokens" => {
                let ids = (0..text).map(|i| ((7 * i + 5) % 99) as f32);
                Tensor::new(shape, ids.collect())
            }
            "timestep" => Tensor::new(shape, vec![TIMESTEP]),
            "class" => Tensor::new(shape, vec![CLASS]),
            "guidance_embedding" => given("guidance", shape),
            "context" => given("context", shape),
            "latent" if shape[0] == 1 => {
                // The decoder reads the first of two.
                let both = given("latent", &[2, shape[3], height, width]);
                Tensor::new(shape, both.data[..both.data.len() / 2].to_vec())
            }
            "latent" | "condition" | "image" => {
                given(name, &[shape[0], shape[3], shape[1], shape[2]])
            }
            other => panic!("input {other}"),
        };
        (name.clone(), value)
    };
    graph.inputs().into_iter().map(named).collect()
}

#[test]
fn small_models_evaluate_to_the_outputs_of_diffusers() {
    let golden = data("family.safetensors");
    let golden = SafeTensors::deserialize(&golden).unwrap();
    for listed in listed().iter().filter(|m| m.is_small()) {
        let folder = tempfile::tempdir().unwrap();
        let (source, config) = (listed.write(folder.path()), listed.describe());
        let config = config.at_size(2 * config.width_px, config.height_px).unwrap();
        for (graph, output) in graphs(&config).iter().zip(["text", "eps", "image", "mean"]) {
            let found = evaluate(graph, &*source, inputs(graph, &config));
            let view = golden.tensor(&format!("{}.{output}", listed.name)).unwrap();
            let words = view.data().chunks_exact(4);
            let expected: Vec<f32> =
                words.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let expected = channels_last(view.shape(), &expected);
            assert_eq!(found.shape, expected.shape, "{} {output}", listed.name);
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
            let pairs = found.data.iter().zip(&expected.data);
            let distance = norm(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
            let error = distance / norm(&mut expected.data.iter().map(|v| f64::from(*v)));
            println!("{} {output}: relative L2 {error:.1e}", listed.name);
            assert!(error <= TOLERANCE, "{} {output}: relative L2 {error:e}", listed.name);
        }
    }
}
