//! A whole picture: the session against a simulation with the reference of every network.

use kiln_ir::{Graph, Tensor};
use kiln_runtime::pipeline::rng::NormalRng;
use kiln_runtime::pipeline::sampler::{self, SamplerEntry, SamplerOptions};
use kiln_runtime::session::{Request, Session};
use kiln_runtime::tensor::Values;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use crate::case::Original;
use crate::device::transposed;
use crate::values::Inputs;

/// Steps of the sampler: the second reads what the first left on the device.
const STEPS: usize = 2;
const GUIDANCE: f32 = 2.0;

/// Tensors on the way to a picture, by the names of the session's dump; channels first.
pub type Dumps = HashMap<String, Vec<f32>>;

/// Makes a picture, with a few words that CLIP's tokenizer splits.
pub fn make(session: &mut Session, sampler: &str) -> Dumps {
    let dumps = RefCell::new(Dumps::new());
    let dump = |name: &str, tensor: &kiln_runtime::Tensor| {
        let values = match &tensor.values {
            Values::F32(values) => values.clone(),
            Values::I32(values) => values.iter().map(|v| *v as f32).collect(),
        };
        dumps.borrow_mut().insert(name.to_string(), values);
        Ok(())
    };
    let request = Request {
        prompt: "a lighthouse at dusk".into(),
        negative_prompt: "blurry".into(),
        seed: 7,
        steps: Some(STEPS),
        guidance: Some(GUIDANCE),
        sampler: Some(sampler.into()),
        dump: Some(&dump),
        ..Request::default()
    };
    let picture = session.generate(&request, &mut |_| ControlFlow::Continue(()));
    picture.unwrap_or_else(|error| panic!("no picture: {error}"));
    dumps.into_inner()
}

/// What the reference makes of a dump's tokens and noise: the decoder's output, channels first.
/// `run` evaluates a network.
pub fn simulate(
    dumps: &Dumps,
    sampler: &str,
    networks: &BTreeMap<&'static str, Original>,
    run: impl Fn(&Graph, &Inputs) -> Tensor,
) -> Vec<f32> {
    let run = |name: &str, given: &[(&str, Vec<f32>)]| {
        let graph = &networks[name].graph;
        let input = |(name, values): &(&str, Vec<f32>)| {
            let shape = &input_shape(graph, name);
            let count = shape.iter().product();
            let repeated = values.iter().copied().cycle().take(count).collect();
            (name.to_string(), Tensor::new(shape, repeated))
        };
        run(graph, &given.iter().map(input).collect())
    };
    let embedding = run("text_encoder", &[("tokens", dumps["tokens"].clone())]);
    let latents = &dumps["latent_000"];
    let options = SamplerOptions::stable_diffusion(STEPS, latents.len());
    let entry = SamplerEntry::find(sampler).expect("it is in the registry");
    let mut sampler = entry.sampler(&options).expect("the options are possible");
    // Channels last, as the networks are: the sampler minds no order where it adds no noise.
    let channels = input_shape(&networks["unet"].graph, "latent")[3];
    let mut latents: Vec<f32> = transposed(latents, latents.len() / channels).collect();
    let mut input = latents.clone();
    for step in 0..STEPS {
        sampler.scale_model_input(step, &latents, &mut input).expect("lengths agree");
        let given = [
            ("latent", input.clone()),
            ("timestep", vec![sampler.timesteps()[step]]),
            ("context", embedding.data.clone()),
        ];
        let mut eps = run("unet", &given).data;
        let conditional = eps.split_off(latents.len());
        sampler::guide(&mut eps, &conditional, GUIDANCE, 0.0).expect("lengths agree");
        let mut rng = NormalRng::from_seed(0);
        sampler.step(step, &eps, &mut latents, &mut rng).expect("lengths agree");
    }
    let decoded = run("decoder", &[("latent", latents)]);
    transposed(&decoded.data, decoded.channels()).collect()
}

fn input_shape(graph: &Graph, name: &str) -> Vec<usize> {
    let input = graph.inputs().into_iter().find(|id| graph.node(*id).name == name);
    graph.ty(input.expect("the model has that input")).shape.clone()
}
