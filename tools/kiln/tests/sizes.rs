//! Pictures that are no squares: every network against the reference of its graph, and a whole run.
//! A model for inpainting: its U-Net against the reference.

mod harness;

use harness::{arg, kiln_err, kiln_ok, npy, scratch};
use kiln_bundle::BundleFile;
use kiln_graphs::config::{self, ModelConfig};
use kiln_graphs::{unet, vae_decoder, vae_encoder};
use kiln_ir::{Graph, NodeKind, Tensor, reference};
use kiln_models::{ConfiguredModel, WithEncoder};
use kiln_testkit::{bounds, relative_l2};
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// A model of one level, which compiles few kernels.
const DESCRIPTION: &str = "
base = 'sd15'
latent_channels = 4

[text]
width = 32
heads = 1
layers = 1

[unet]
channels = [32]
res_blocks = 1
heads = [2]
down_attention = [0]
up_attention = [0]
context_width = 32

[vae]
channels = [32, 32]
res_blocks = 1
";

/// Values of a tensor that keep activations at their size.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name.bytes().fold(7, |hash: u64, b| hash.wrapping_mul(31).wrapping_add(b.into()));
    let mut rng = fastrand::Rng::with_seed(seed);
    let fan_in: usize = shape[1..].iter().product();
    let (center, spread) = match shape.len() {
        1 if name.ends_with("weight") => (1.0, 0.2),
        1 => (0.0, 0.1),
        _ => (0.0, (3.0 / fan_in as f32).sqrt()),
    };
    (0..shape.iter().product::<usize>())
        .map(|_| center + spread * (2.0 * rng.f32() - 1.0))
        .collect()
}

fn tensors(graphs: &[Graph]) -> BTreeMap<String, Vec<usize>> {
    let mut tensors = BTreeMap::new();
    for graph in graphs {
        for id in graph.ids() {
            if let NodeKind::Weight(expr) = &graph.node(id).kind {
                let named = expr.tensors().into_iter();
                tensors.extend(named.map(|(key, shape)| (key.to_string(), shape.to_vec())));
            }
        }
    }
    tensors
}

fn write_checkpoint(path: &Path, tensors: &BTreeMap<String, Vec<usize>>) {
    let (mut entries, mut data) = (vec![], vec![]);
    for (name, shape) in tensors {
        let start = data.len();
        data.extend(values(name, shape).iter().flat_map(|v| v.to_le_bytes()));
        let end = data.len();
        entries.push(format!(
            "{name:?}:{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(path, file).expect("the target folder can be written");
}

/// Evaluates a network of the bundle and its graph's reference on the same values.
fn expect_close(folder: &Path, bundle: &Path, network: &str, graph: &Graph) {
    let (mut inputs, mut given) = (HashMap::new(), vec![]);
    for id in graph.inputs() {
        let (name, shape) = (&graph.node(id).name, &graph.ty(id).shape);
        let value = Tensor::new(shape, values(&format!("input {name}"), shape));
        let path = folder.join(format!("{network}-{name}.npy"));
        write_npy(&path, &channels_first(&value));
        given.push(format!("{name}={}", arg(&path)));
        inputs.insert(name.clone(), value);
    }
    let output = folder.join(format!("{network}.npy"));
    let fixed = ["eval", arg(bundle), "--network", network, "--output", arg(&output)];
    let given = given.iter().flat_map(|value| ["--input", value.as_str()]);
    kiln_ok(&fixed.into_iter().chain(given).collect::<Vec<_>>());
    let weight = |key: &str| -> Result<Tensor, Box<dyn Error + Send + Sync>> {
        let shape = tensors(std::slice::from_ref(graph)).remove(key).ok_or("no such tensor")?;
        Ok(Tensor::new(&shape, values(key, &shape)))
    };
    let expected = reference::evaluate(graph, &inputs, &weight).expect("it evaluates").remove(0).1;
    let error = relative_l2(&npy(&output), &channels_first(&expected).data);
    println!("{network}: relative L2 {error:.1e}");
    assert!(error <= bounds::NETWORK_FP32, "{network}: relative L2 {error:e}");
}

/// A feature map as `[N, C, H, W]`. Other tensors stay as they are.
fn channels_first(x: &Tensor) -> Tensor {
    let &[n, h, w, c] = &x.shape[..] else { return x.clone() };
    let places = (0..n * c * h * w).map(|i| {
        let (image, channel, pixel) = (i / (c * h * w), i / (h * w) % c, i % (h * w));
        x.data[(image * h * w + pixel) * c + channel]
    });
    Tensor::new(&[n, c, h, w], places.collect())
}

fn write_npy(path: &Path, x: &Tensor) {
    let file = File::create(path).expect("the target folder can be written");
    kiln_runtime::npy::write(file, &x.shape, &x.data).expect("the target folder can be written");
}

#[test]
fn pictures_may_be_wider_than_high() {
    let folder = scratch("sizes");
    let [description, weights, bundle, picture] =
        ["tiny.toml", "tiny.safetensors", "tiny.kiln", "wide.png"].map(|name| folder.join(name));
    std::fs::write(&description, DESCRIPTION).expect("the target folder can be written");
    let config: ModelConfig = config::parse("tiny", DESCRIPTION).expect("it is a description");
    let wide = config.at_size(48, 32).expect("it is a multiple of 2");
    let model = WithEncoder(ConfiguredModel(wide.clone()));
    let parts = kiln_compiler::model::parts(&model, 1, 1).expect("the graphs build");
    let graphs: Vec<Graph> = parts.into_iter().map(|part| part.graph).collect();
    write_checkpoint(&weights, &tensors(&graphs));
    let fixed = ["compile", "--model", arg(&description), "--weights", arg(&weights)];
    let fixed = [&fixed[..], &["--with-encoder", "--no-prepare", "-o", arg(&bundle)]].concat();
    let line = kiln_err(&[&fixed[..], &["--size", "48x33"]].concat(), 2);
    assert!(line.contains("--size 48x33: height_px: 33 is no multiple of 2"), "{line}");
    kiln_ok(&[&fixed[..], &["--size", "48x32", "--guidance-batch", "1"]].concat());
    expect_close(&folder, &bundle, "unet", &unet(&wide, 1).expect("it builds"));
    expect_close(&folder, &bundle, "decoder", &vae_decoder(&wide).expect("it builds"));
    expect_close(&folder, &bundle, "encoder", &vae_encoder(&wide).expect("it builds"));
    let run = ["run", arg(&bundle), "-p", "a heart", "--steps", "2", "--preview-every", "1"];
    let files = ["--init-image", "docs/images/pizza.png", "--dump", arg(&folder), "-o"];
    kiln_ok(&[&run[..], &files[..], &[arg(&picture)]].concat());
    assert_eq!(size(&picture), (48, 32));
    // Squares of six pixels, so that the preview is at least 128 wide.
    assert_eq!(size(&folder.join("wide.preview.png")), (144, 96));
    several_sizes(&fixed, &bundle, &run);
}

#[test]
fn a_picture_beside_the_latent_is_read_by_eval_alone() {
    let folder = scratch("sizes-inpaint");
    let [description, weights, bundle, picture] =
        ["inpaint.toml", "inpaint.safetensors", "inpaint.kiln", "never.png"]
            .map(|name| folder.join(name));
    let text = DESCRIPTION.replace("[unet]", "[unet]\ncondition_channels = 5");
    std::fs::write(&description, &text).expect("the target folder can be written");
    let config: ModelConfig = config::parse("inpaint", &text).expect("it is a description");
    let small = config.at_size(32, 32).expect("it is a multiple of 2");
    let model = ConfiguredModel(small.clone());
    let parts = kiln_compiler::model::parts(&model, 1, 1).expect("the graphs build");
    let graphs: Vec<Graph> = parts.into_iter().map(|part| part.graph).collect();
    write_checkpoint(&weights, &tensors(&graphs));
    let fixed = ["compile", "--model", arg(&description), "--weights", arg(&weights)];
    let size = ["--size", "32x32", "--guidance-batch", "1", "--no-prepare", "-o", arg(&bundle)];
    kiln_ok(&[&fixed[..], &size].concat());
    expect_close(&folder, &bundle, "unet", &unet(&small, 1).expect("it builds"));
    let line = kiln_err(&["run", arg(&bundle), "-p", "a", "-o", arg(&picture)], 2);
    assert!(line.contains("reads a picture beside the latent"), "{line}");
}

/// A bundle for two sizes makes both pictures, and has its weights once.
fn several_sizes(compile: &[&str], single: &Path, run: &[&str]) {
    let [bundle, picture] = ["both.kiln", "second.png"].map(|name| single.with_file_name(name));
    let mut compile = compile.to_vec();
    *compile.last_mut().expect("the output") = arg(&bundle);
    kiln_ok(&[&compile[..], &["--size", "32x48,48x32", "--guidance-batch", "1"]].concat());
    let [both, single] =
        [bundle.as_path(), single].map(|path| BundleFile::open(path).expect("it opens"));
    assert_eq!(both.plan().manifest.image.to_string(), "32x48");
    let (both_bytes, single_bytes) = (both.weights_len_bytes(), single.weights_len_bytes());
    assert!(both_bytes < single_bytes * 5 / 4, "{both_bytes} bytes, {single_bytes} for one size");
    let mut run = run.to_vec();
    run[1] = arg(&bundle);
    kiln_ok(&[&run[..], &["--size", "48x32", "-o", arg(&picture)]].concat());
    assert_eq!(size(&picture), (48, 32));
    let line = kiln_err(&[&run[..], &["--size", "64x64", "-o", arg(&picture)]].concat(), 2);
    assert!(line.contains("makes no pictures of 64x64, only of 32x48, 48x32"), "{line}");
}

/// Width and height of a PNG file.
fn size(path: &Path) -> (u32, u32) {
    let file = BufReader::new(File::open(path).expect("it is there"));
    png::Decoder::new(file).read_info().expect("it is a PNG").info().size()
}
