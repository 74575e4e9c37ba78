//! Small models on the device: networks against the references of their graphs, and whole runs. One
//! for pictures that are no squares, one whose U-Net reads a picture beside the latent, one whose
//! U-Net reads the scale of guidance.

mod harness;

use harness::{arg, kiln_err, kiln_ok, npy, scratch};
use kiln_bundle::BundleFile;
use kiln_graphs::config::{self, ModelConfig};
use kiln_graphs::{unet, vae_decoder, vae_encoder};
use kiln_ir::{Graph, IrError, NodeKind, Tensor, reference};
use kiln_models::{Assembled, Autoencoder, ConfiguredModel, Decoders, Encoder};
use kiln_testkit::{bounds, relative_l2};
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// A model of one level, which compiles few kernels. Groups of one channel would remove what the
/// timestep adds, so the U-Net is twice as wide as its norms have groups.
const DESCRIPTION: &str = "
base = 'sd15'
latent_channels = 4

[text]
width = 32
heads = 1
layers = 1

[unet]
channels = [64]
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

/// A model at a size, with its files.
struct Small {
    folder: PathBuf,
    config: ModelConfig,
    bundle: PathBuf,
}

impl Small {
    /// Writes the description, with more fields of the U-Net, and a checkpoint with the encoder.
    fn new(name: &str, unet: &str, [width_px, height_px]: [usize; 2]) -> Small {
        let folder = scratch(&format!("small-{name}"));
        let text = DESCRIPTION.replace("[unet]", &format!("[unet]\n{unet}"));
        let config = config::parse(name, &text).expect("it is a description");
        let config = config.at_size(width_px, height_px).expect("it is a multiple of 2");
        let small = Small { bundle: folder.join("small.kiln"), folder, config };
        std::fs::write(small.folder.join("small.toml"), text).expect("the folder can be written");
        let around = Autoencoder { encoder: Encoder::Own, decoders: Decoders::Own };
        let model = Assembled { model: ConfiguredModel(small.config.clone()), around };
        let parts = kiln_compiler::model::parts(&model, 1, 1).expect("the graphs build");
        let graphs: Vec<Graph> = parts.into_iter().map(|part| part.graph).collect();
        write_checkpoint(&small.folder.join("small.safetensors"), &tensors(&graphs));
        small
    }

    /// The arguments that compile it, but for its size.
    fn compile_args(&self) -> Vec<String> {
        let (description, weights) = ("small.toml", "small.safetensors");
        let [description, weights] = [description, weights].map(|name| self.folder.join(name));
        let files = ["compile", "--model", arg(&description), "--weights", arg(&weights), "-o"];
        let more = ["--with-encoder", "--no-prepare", "--guidance-batch", "1"];
        files.into_iter().chain([arg(&self.bundle)]).chain(more).map(String::from).collect()
    }

    fn compile(&self) {
        let size = format!("{}x{}", self.config.width_px, self.config.height_px);
        let mut args = self.compile_args();
        args.extend(["--size".into(), size]);
        kiln_ok(&refs(&args));
    }

    fn expect_close(&self, network: &str, graph: Result<Graph, IrError>) {
        expect_close(&self.folder, &self.bundle, network, &graph.expect("it builds"));
    }
}

fn refs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn pictures_may_be_wider_than_high() {
    let wide = Small::new("wide", "", [48, 32]);
    let mut args = wide.compile_args();
    args.extend(["--size", "48x33"].map(String::from));
    let line = kiln_err(&refs(&args), 2);
    assert!(line.contains("--size 48x33: height_px: 33 is no multiple of 2"), "{line}");
    wide.compile();
    wide.expect_close("unet", unet(&wide.config, 1));
    wide.expect_close("decoder", vae_decoder(&wide.config));
    wide.expect_close("encoder", vae_encoder(&wide.config));
    let picture = wide.folder.join("wide.png");
    let run = ["run", arg(&wide.bundle), "-p", "a heart", "--steps", "2", "--preview-every", "1"];
    let files = ["--init-image", "docs/images/pizza.png", "--dump", arg(&wide.folder), "-o"];
    kiln_ok(&[&run[..], &files[..], &[arg(&picture)]].concat());
    assert_eq!(size(&picture), (48, 32));
    // Squares of six pixels, so that the preview is at least 128 wide.
    assert_eq!(size(&wide.folder.join("wide.preview.png")), (144, 96));
}

/// A bundle for two sizes makes both pictures, and has its weights once.
#[test]
fn a_bundle_is_for_several_sizes() {
    let small = Small::new("sizes", "", [48, 32]);
    small.compile();
    let single = BundleFile::open(&small.bundle).expect("it opens").weights_len_bytes();
    let mut args = small.compile_args();
    args.extend(["--size", "32x48,48x32"].map(String::from));
    kiln_ok(&refs(&args));
    let both = BundleFile::open(&small.bundle).expect("it opens");
    assert_eq!(both.plan().manifest.image.to_string(), "32x48");
    let both_bytes = both.weights_len_bytes();
    assert!(both_bytes < single * 5 / 4, "{both_bytes} bytes, {single} for one size");
    let picture = small.folder.join("second.png");
    let run = ["run", arg(&small.bundle), "-p", "a heart", "--steps", "2", "-o", arg(&picture)];
    kiln_ok(&[&run[..], &["--size", "48x32"]].concat());
    assert_eq!(size(&picture), (48, 32));
    let line = kiln_err(&[&run[..], &["--size", "64x64"]].concat(), 2);
    assert!(line.contains("makes no pictures of 64x64, only of 32x48, 48x32"), "{line}");
}

/// Mask and masked picture reach the U-Net as in the inpainting pipeline of diffusers, which made the
/// latents from this checkpoint: `tests/golden/inpaint/make.py`.
#[test]
fn a_model_for_inpainting_repaints_a_picture() {
    let inpaint = Small::new("inpaint", "condition_channels = 5", [32, 32]);
    // The encoder is in the bundle without --with-encoder.
    let args: Vec<String> = inpaint.compile_args();
    let mut args: Vec<&str> = refs(&args).into_iter().filter(|a| *a != "--with-encoder").collect();
    args.extend(["--size", "32x32"]);
    kiln_ok(&args);
    inpaint.expect_close("unet", unet(&inpaint.config, 1));
    let golden = harness::root().join("tools/kiln/tests/golden/inpaint");
    let [init, mask] = ["init.png", "mask.png"].map(|name| golden.join(name));
    let picture = inpaint.folder.join("repainted.png");
    let run = ["run", arg(&inpaint.bundle), "-p", "a red heart", "-o", arg(&picture)];
    let steps = ["--sampler", "ddim", "--steps", "4", "--guidance", "7.5"];
    let from = ["--init-image", arg(&init), "--mask", arg(&mask), "--dump", arg(&inpaint.folder)];
    for (strength, count) in [("1", 4), ("0.5", 2)] {
        kiln_ok(&[&run[..], &steps[..], &from[..], &["--strength", strength]].concat());
        let found = npy(&inpaint.folder.join(format!("latent_{count:03}.npy")));
        let error = relative_l2(&found, &npy(&golden.join(format!("latents-{count}.npy"))));
        println!("{count} steps: relative L2 {error:.1e}");
        assert!(error <= bounds::RUN_FP32, "{count} steps: relative L2 {error:e}");
    }
    let (given, made) = (pixels(&init), pixels(&picture));
    assert!(given[..48] == made[..48] && given != made, "the mask keeps the first row's half");
    let line = kiln_err(&[&run[..], &["--init-image", arg(&init)]].concat(), 2);
    assert!(line.contains("give --init-image, and --mask"), "{line}");
}

#[test]
fn a_picture_of_depth_is_read_by_eval_alone() {
    let depth = Small::new("depth", "condition_channels = 1", [32, 32]);
    depth.compile();
    let picture = depth.folder.join("never.png");
    let line = kiln_err(&["run", arg(&depth.bundle), "-p", "a", "-o", arg(&picture)], 2);
    assert!(line.contains("reads a picture beside the latent"), "{line}");
}

#[test]
fn the_scale_of_guidance_is_an_input() {
    let guided = Small::new("guided", "guidance_width = 32", [32, 32]);
    guided.compile();
    guided.expect_close("unet", unet(&guided.config, 1));
    let picture = |guidance: &str| {
        let picture = guided.folder.join(format!("{guidance}.png"));
        let run = ["run", arg(&guided.bundle), "-p", "a heart", "--steps", "2"];
        kiln_ok(&[&run[..], &["--guidance", guidance, "-o", arg(&picture)]].concat());
        pixels(&picture)
    };
    assert!(picture("1") != picture("8.5"), "guidance changes nothing");
}

/// Width and height of a PNG file.
fn size(path: &Path) -> (u32, u32) {
    let file = BufReader::new(File::open(path).expect("it is there"));
    png::Decoder::new(file).read_info().expect("it is a PNG").info().size()
}

/// Colours of a PNG file.
fn pixels(path: &Path) -> Vec<u8> {
    let file = BufReader::new(File::open(path).expect("it is there"));
    let mut reader = png::Decoder::new(file).read_info().expect("it is a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("it is small")];
    reader.next_frame(&mut pixels).expect("it is whole");
    pixels
}
