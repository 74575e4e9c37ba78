//! A LoRA as a file beside a bundle, whose runs switch it on.
//!
//! A constant of the bundle is one tensor of the checkpoint or several, one below the other. Its
//! factors are those of all their changes: `down` one below the other, `up` beside each other, each
//! in its own rows. Both are in the order of the bundle's kernels.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kiln_bundle::lora::{self, Change, Head};
use kiln_bundle::plan::{DownOrder, Layer, Plan};
use kiln_ir::DType;
use kiln_kernels::Packing;

use super::super::{StoredType, TensorInfo, TensorSource, one_line};
use super::keys::{Keys, Part, Place};
use super::product::{self, Parts, Product};
use super::{layers, row_elems};

/// A LoRA for a bundle, and the layers of the LoRA that the bundle has not.
pub type Switch = (lora::Lora, Vec<String>);

/// Makes the LoRA of a file for a bundle.
///
/// Errors: the bundle has no room, or too little; the file cannot be read, is no LoRA of the
/// model, or changes weights by other products than those of two factors.
pub fn switch(path: &Path, plan: &Plan) -> Result<Switch> {
    let room = &plan.lora;
    let Some(factors) = room.factors else {
        bail!("the bundle has no room for LoRAs; compile it with --lora-memory 16MiB");
    };
    let lora = super::super::open_file(path)?;
    let base = Names::of(&room.layers);
    let keys = Keys::of(&base);
    let (found, others) = layers(lora.as_ref(), &keys, base.tensors())?;
    let shown = path.display();
    ensure!(
        !found.is_empty(),
        "{shown}: the bundle has none of its layers; it is a LoRA of another model, or none"
    );
    let changes = products(lora.as_ref(), &found, base.tensors())?;
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let layers = lora::layers_hash(&room.layers);
    let head = Head { name: name.unwrap_or_default(), layers, changes: vec![] };
    let mut made = lora::Lora { head, factors: vec![] };
    for (index, layer) in room.layers.iter().enumerate() {
        add(&mut made, index, layer, &changes)?;
    }
    let (needed, there) = (made.factors.len() as u64, plan.buffers[factors.index()].len_bytes);
    ensure!(
        needed <= there,
        "{shown} needs {needed} bytes of memory, and the bundle has room for {there}; compile it \
         with --lora-memory {}MiB",
        needed.div_ceil(1 << 20)
    );
    Ok((made, others))
}

/// A change of rows of a tensor.
struct LowRank {
    first_row: usize,
    rows: usize,
    rank: usize,
    /// `[rows, rank]`, times the scale.
    up: Vec<f32>,
    /// `[rank, values of a row]`.
    down: Vec<f32>,
}

/// The changes of each tensor by its name.
fn products(
    lora: &dyn TensorSource,
    found: &BTreeMap<Place, Parts>,
    tensors: &[TensorInfo],
) -> Result<BTreeMap<String, Vec<LowRank>>> {
    let mut changes = BTreeMap::<String, Vec<LowRank>>::new();
    for (place, parts) in found {
        let info = &tensors[place.tensor];
        let all_rows = info.shape.first().copied().unwrap_or(1);
        let (first_row, rows) = match place.third {
            Some(third) => (third * (all_rows / 3), all_rows / 3),
            None => (0, all_rows),
        };
        let at = || format!("{}: its change of {}", lora.path().display(), one_line(&info.name));
        product::check(lora, parts, rows, row_elems(info)).with_context(at)?;
        let product = Product::read(lora, parts).with_context(at)?;
        let low = product.low_rank().filter(|_| !parts.contains_key(&Part::Magnitude));
        let Some((rank, up, down)) = low else {
            bail!(
                "{} is no product of two factors (LoHa, LoKr and DoRA are not), so that a run \
                 cannot switch it; merge it with kiln compile --lora",
                at()
            );
        };
        let change = LowRank { first_row, rows, rank, up, down };
        changes.entry(info.name.clone()).or_default().push(change);
    }
    Ok(changes)
}

/// Adds the factors of a layer, if the LoRA changes it.
fn add(
    made: &mut lora::Lora,
    index: usize,
    layer: &Layer,
    changes: &BTreeMap<String, Vec<LowRank>>,
) -> Result<()> {
    let shape: Vec<usize> = layer.shape.iter().map(|d| *d as usize).collect();
    let mut parts = Vec::new();
    let mut first = 0;
    for (name, tensor) in &layer.tensors {
        let of_tensor = changes.get(name).into_iter().flatten();
        parts.extend(of_tensor.map(|change| (first + change.first_row, change)));
        first += tensor.first().copied().unwrap_or(1) as usize;
    }
    let rank: usize = parts.iter().map(|(_, change)| change.rank).sum();
    if rank == 0 {
        return Ok(());
    }
    let (mut up, mut down) = (vec![0.0; shape[0] * rank], Vec::new());
    let mut column = 0;
    for (first, change) in parts {
        for row in 0..change.rows {
            let from = &change.up[row * change.rank..][..change.rank];
            up[(first + row) * rank + column..][..change.rank].copy_from_slice(from);
        }
        down.extend_from_slice(&change.down);
        column += change.rank;
    }
    let (width, dtype) = (layer.width as usize, DType::F32);
    let panels = Packing::Panels { width, dtype, gated: layer.gated };
    let up = panels.pack(&[shape[0], rank], &up);
    let panel_bytes = width * rank * size_of::<f32>();
    let (panel, count) = (layer.panels.0 as usize, layer.panels.1 as usize);
    let up = up.get(panel * panel_bytes..(panel + count) * panel_bytes);
    let order = match layer.order {
        DownOrder::Rows => Packing::RowMajor(dtype),
        DownOrder::Taps => Packing::Panels { width: 1, dtype, gated: false },
        DownOrder::Winograd(outputs) => {
            Packing::Winograd { outputs: outputs.into(), width: 1, dtype }
        }
    };
    let down = order.pack(&[&[rank], &shape[1..]].concat(), &down);
    let up = up.filter(|_| down.len() == layer.k as usize * rank * size_of::<f32>());
    let up = up.with_context(|| format!("the layer {} does not fit", layer.tensors[0].0))?;
    let at = |made: &lora::Lora| (made.factors.len() / size_of::<f32>()) as u32;
    let up_at = at(made);
    made.factors.extend_from_slice(up);
    let down_at = at(made);
    made.factors.extend_from_slice(&down);
    let (layer, rank) = (index as u32, rank as u32);
    made.head.changes.push(Change { layer, rank, up: up_at, down: down_at });
    Ok(())
}

/// The tensors of a bundle's layers, without values.
#[derive(Debug)]
struct Names(Vec<TensorInfo>);

impl Names {
    fn of(layers: &[Layer]) -> Names {
        let tensors = layers.iter().flat_map(|layer| &layer.tensors);
        let shapes: BTreeMap<&String, &Vec<u32>> = tensors.map(|(n, s)| (n, s)).collect();
        let info = |(name, shape): (&String, &Vec<u32>)| TensorInfo {
            name: name.clone(),
            dtype: StoredType::F32,
            shape: shape.iter().map(|d| *d as usize).collect(),
        };
        Names(shapes.into_iter().map(info).collect())
    }
}

impl TensorSource for Names {
    fn path(&self) -> &Path {
        Path::new("the bundle")
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.0
    }

    fn read_index(&self, _: usize, _: usize, _: &mut [f32]) -> Result<()> {
        bail!("a bundle has no values of its checkpoint")
    }
}

/// Arithmetic and bytes that a LoRA adds to a step of the sampler, beside those of the denoiser.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct StepCost {
    /// Arithmetic of changing streamed weights, in FLOP.
    pub flops: u64,
    /// Arithmetic of the denoiser, in FLOP.
    pub step_flops: u64,
    /// Streamed weights that are changed after each read, in bytes.
    pub streamed_bytes: u64,
}

/// The cost of a LoRA in a step: resident weights are changed once, streamed ones in every step.
pub fn step_cost(lora: &lora::Lora, plan: &Plan) -> StepCost {
    use kiln_bundle::plan::{Residency, Role, Step};
    let Some(denoiser) = plan.with_role(Role::Denoiser) else { return StepCost::default() };
    let passes = u64::from(plan.manifest.guidance_branches / plan.manifest.guidance_batch.max(1));
    let steps = &plan.networks[denoiser].steps;
    let flops = steps.iter().map(|step| match step {
        Step::Dispatch(dispatch) => dispatch.flops,
        _ => 0,
    });
    let mut cost = StepCost { step_flops: passes * flops.sum::<u64>(), ..StepCost::default() };
    for change in &lora.head.changes {
        let layer = &plan.lora.layers[change.layer as usize];
        let loads = steps
            .iter()
            .filter(|step| matches!(step, Step::Load { block, .. } if *block == layer.block));
        if plan.blocks[layer.block.index()].residency == Residency::Streamed {
            let times = passes * loads.count() as u64;
            let weights = u64::from(layer.k) * u64::from(layer.panels.1) * u64::from(layer.width);
            cost.flops += times * 2 * u64::from(change.rank) * weights;
            cost.streamed_bytes += times * layer.len_bytes;
        }
    }
    cost
}
