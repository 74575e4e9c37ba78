//! Adds up the account of a bundle: every number that `kiln inspect` shows, in any form.

use anyhow::Result;
use kiln_bundle::plan::{Access, Arg, Block, Dispatch, Input, Plan, Residency, Role, Step};
use kiln_compiler::device::{DeviceProfile, Published};
use kiln_compiler::plan::cost::{bound, code_of, single_issue_ns};
use kiln_compiler::plan::time::{
    Prediction, gather_ns, passes, passes_a_step, resident_bytes, sampler_steps,
};
use std::collections::{BTreeMap, HashMap};

use super::measured::Measured;
use super::schema::{
    Account, BlockAccount, InputAccount, KernelAccount, LoadAccount, Memory, NetworkAccount,
    OpAccount, Peak, Predicted, Region, SCHEMA, Weights,
};

impl<'a> Account<'a> {
    /// Adds up all numbers.
    ///
    /// Errors: the measured times are of another plan.
    pub fn new(plan: &'a Plan, measured: Option<&Measured>) -> Result<Self> {
        let (prediction, longest) = (Prediction::new(plan), Prediction::single_issue(plan));
        let live_bytes = live_bytes(plan);
        let arena = regions(plan);
        let mut networks: Vec<_> =
            (0..plan.networks.len()).map(|i| network(plan, &prediction, &live_bytes, i)).collect();
        for (network, time) in networks.iter_mut().zip(&longest.networks) {
            network.pass_single_issue_ns = time.pass_ns;
        }
        let mut ops = ops(plan);
        if let Some(measured) = measured {
            measured.enter(&mut networks, &mut ops)?;
        }
        let (step_ns, step_stall_ns) = prediction.step_ns(plan);
        Ok(Account {
            schema: SCHEMA,
            model: &plan.manifest.model,
            precision: &plan.manifest.precision,
            profile: &plan.manifest.profile,
            manifest: &plan.manifest,
            memory: Memory { peak_bytes: plan.memory.peak_bytes(), plan: &plan.memory },
            requirements: &plan.requirements,
            rates: &plan.rationale.rates,
            predicted: Predicted {
                sampler_steps: sampler_steps(&plan.manifest),
                picture_ns: prediction.picture_ns(plan),
                picture_single_issue_ns: longest.picture_ns(plan),
                fast_picture_ns: super::presets::pictures_ns(plan, &prediction),
                step_ns,
                step_stall_ns,
            },
            weights: weights(plan, &networks),
            weight_reads: measured.and_then(|m| m.weight_reads.clone()),
            published: published(plan),
            peak: peak(plan, &arena, &live_bytes),
            kernels: kernels(plan, &ops),
            blocks: plan.blocks.iter().map(block).collect(),
            loads: loads(plan, &prediction),
            attempts: &plan.rationale.attempts,
            tensors: super::tensors::tensors(plan),
            start_ns: prediction.start_ns,
            live_bytes,
            networks,
            arena,
            ops,
        })
    }

    /// Predicted time of an op's launches over a whole image, in nanoseconds.
    pub fn picture_ns(&self, op: &OpAccount) -> u64 {
        op.predicted_ns.saturating_mul(self.networks[op.network].passes)
    }
}

/// Published times of this model on the device, if its profile ships with Kiln.
fn published(plan: &Plan) -> Vec<Published> {
    let manifest = &plan.manifest;
    let known = DeviceProfile::names().any(|name| name == manifest.profile);
    let profile = known.then(|| DeviceProfile::load(&manifest.profile).ok()).flatten();
    let published = profile.map(|(_, profile)| profile.published).unwrap_or_default();
    published.into_iter().filter(|p| p.model == manifest.model).collect()
}

fn block(block: &Block) -> BlockAccount<'_> {
    let buffer = match block.residency {
        Residency::Resident(buffer) => Some(buffer.0),
        Residency::Streamed => None,
    };
    let (name, len_bytes) = (block.name.as_str(), block.len_bytes);
    BlockAccount { name, kind: block.kind, len_bytes, resident: buffer.is_some(), buffer }
}

fn input(input: &Input) -> InputAccount<'_> {
    let Input { port, source } = input;
    InputAccount { name: &port.name, buffer: port.buffer, shape: &port.shape, source: *source }
}

/// Sum of the live buffers at each instant.
fn live_bytes(plan: &Plan) -> Vec<u64> {
    let count: usize = plan.networks.iter().map(|n| n.steps.len()).sum();
    let mut change = vec![0i64; count + 1];
    for buffer in &plan.buffers {
        change[buffer.lower as usize] += buffer.len_bytes as i64;
        change[buffer.upper as usize] -= buffer.len_bytes as i64;
    }
    let mut live = 0;
    let sums = change.iter().take(count).map(|c| {
        live += c;
        live as u64
    });
    sums.collect()
}

fn regions(plan: &Plan) -> Vec<Region<'_>> {
    let regions = (0..).zip(&plan.buffers).map(|(id, b)| Region {
        buffer: id,
        name: &b.name,
        kind: b.kind,
        offset_bytes: b.offset_bytes,
        len_bytes: b.len_bytes,
        lower: b.lower,
        upper: b.upper,
    });
    regions.collect()
}

fn weights(plan: &Plan, networks: &[NetworkAccount]) -> Weights {
    let is_resident = |b: &&Block| matches!(b.residency, Residency::Resident(_));
    let (resident, streamed): (Vec<_>, Vec<_>) = plan.blocks.iter().partition(is_resident);
    let a_pass = plan.networks.iter().zip(networks).filter(|(n, _)| n.role == Role::Denoiser);
    Weights {
        resident_bytes: resident.iter().map(|b| b.len_bytes).sum(),
        resident_blocks: resident.len(),
        streamed_bytes: streamed.iter().map(|b| b.len_bytes).sum(),
        streamed_blocks: streamed.len(),
        streamed_bytes_a_pass: a_pass.map(|(_, s)| s.streamed_bytes).sum(),
    }
}

fn network<'a>(
    plan: &'a Plan,
    prediction: &Prediction,
    live_bytes: &[u64],
    index: usize,
) -> NetworkAccount<'a> {
    let network = &plan.networks[index];
    let (lower, upper) = plan.span(index);
    let time = prediction.networks[index];
    let mut account = NetworkAccount {
        name: &network.name,
        role: network.role,
        runs: match network.role {
            Role::ImageEncoder | Role::TextEncoder | Role::PromptProjection => "once a prompt",
            Role::TimestepProjection => "once for all steps",
            Role::Denoiser if passes_a_step(&plan.manifest) == 2 => "twice a step",
            Role::Denoiser => "once a step",
            Role::ShallowDenoiser
            | Role::ConditionalDenoiser
            | Role::ShallowConditionalDenoiser => "with --fast",
            Role::Decoder => "once a picture",
            Role::TinyDecoder => "once a picture or preview",
        },
        passes: passes(&plan.manifest, network.role),
        lower,
        upper,
        launches: 0,
        flops: 0,
        streamed_bytes: 0,
        resident_bytes: resident_bytes(plan, index),
        arena_peak_bytes: live_bytes[lower as usize..upper as usize]
            .iter()
            .copied()
            .max()
            .unwrap_or(0),
        resident_ns: time.resident_ns,
        first_ns: time.first_ns,
        pass_ns: time.pass_ns,
        pass_single_issue_ns: time.pass_ns,
        stall_ns: time.stall_ns,
        measured_ns: None,
        inputs: network.inputs.iter().map(input).collect(),
        loads: &network.loads,
        overwrites: &network.overwrites,
    };
    for step in &network.steps {
        match step {
            Step::Dispatch(d) => {
                account.launches += 1;
                account.flops += d.flops;
            }
            Step::Load { block, .. } => {
                account.streamed_bytes += plan.blocks[block.index()].len_bytes;
            }
            Step::Gather(_) | Step::Free { .. } => {}
        }
    }
    account
}

/// The names of the network and op at an instant.
fn step_name(plan: &Plan, instant: u32) -> (&str, &str) {
    let steps = plan.networks.iter().flat_map(|n| n.steps.iter().map(|s| (n.name.as_str(), s)));
    match steps.clone().nth(instant as usize) {
        Some((network, Step::Dispatch(d))) => (network, d.name.as_str()),
        Some((network, Step::Gather(g))) => (network, g.name.as_str()),
        Some((network, Step::Load { block, .. } | Step::Free { block })) => {
            (network, plan.blocks[block.index()].name.as_str())
        }
        None => ("", ""),
    }
}

fn peak<'a>(plan: &'a Plan, arena: &[Region<'a>], live_bytes: &[u64]) -> Peak<'a> {
    let step = (0..live_bytes.len() as u32).rev().max_by_key(|t| live_bytes[*t as usize]);
    let step = step.unwrap_or(0);
    let (network, op) = step_name(plan, step);
    let mut live: Vec<_> =
        arena.iter().filter(|b| b.lower <= step && step < b.upper).copied().collect();
    live.sort_by_key(|r| std::cmp::Reverse(r.len_bytes));
    let bytes = live_bytes.get(step as usize).copied().unwrap_or(0);
    Peak { step, network, op, live_bytes: bytes, live }
}

fn kernels<'a>(plan: &'a Plan, ops: &[OpAccount<'a>]) -> Vec<KernelAccount<'a>> {
    let mut table: BTreeMap<(&str, &str), KernelAccount> = BTreeMap::new();
    for k in &plan.kernels {
        let (op, variant) = (k.op.as_str(), k.variant.as_str());
        let empty = KernelAccount {
            op,
            variant,
            kernels: 0,
            launches: 0,
            flops: 0,
            bytes: 0,
            predicted_ns: 0,
        };
        table.entry((op, variant)).or_insert(empty).kernels += 1;
    }
    for op in ops {
        if let Some(entry) = table.get_mut(&(op.op, op.variant)) {
            entry.launches += 1;
            entry.flops += op.flops;
            entry.bytes += op.bytes;
            entry.predicted_ns += op.predicted_ns;
        }
    }
    table.into_values().collect()
}

fn ops(plan: &Plan) -> Vec<OpAccount<'_>> {
    let rationale = &plan.rationale;
    let mut choices = rationale.ops.iter().peekable();
    let mut choice = None;
    let mut list = Vec::new();
    let steps =
        plan.networks.iter().enumerate().flat_map(|(i, n)| n.steps.iter().map(move |s| (i, s)));
    for (instant, (network, step)) in (0u32..).zip(steps) {
        while let Some(next) = choices.next_if(|c| c.instant <= instant) {
            choice = rationale.choices.get(next.choice as usize);
        }
        let account = OpAccount {
            step: instant,
            network,
            name: "",
            op: "embedding",
            variant: "gather",
            kernel: None,
            entry: "",
            shape: choice.map_or(&[], |c| &c.shape),
            problem: choice.map_or("", |c| &c.problem),
            global: [1; 3],
            offset: [0; 3],
            range: [1; 3],
            local: None,
            half_arithmetic: false,
            reads: vec![],
            writes: vec![],
            blocks: vec![],
            flops: 0,
            bytes: 0,
            predicted_ns: 0,
            single_issue_ns: 0,
            bound: "storage",
            code: None,
            measured_ns: None,
        };
        match step {
            Step::Dispatch(d) => list.push(dispatch(plan, d, account)),
            Step::Gather(gather) => list.push(OpAccount {
                name: &gather.name,
                reads: vec![gather.indices.0],
                writes: vec![gather.output.0],
                bytes: 2 * gather.row_bytes * u64::from(gather.index_count),
                predicted_ns: gather_ns(&rationale.rates, gather),
                single_issue_ns: gather_ns(&rationale.rates, gather),
                ..account
            }),
            Step::Load { .. } | Step::Free { .. } => {}
        }
    }
    list
}

fn dispatch<'a>(plan: &'a Plan, dispatch: &'a Dispatch, account: OpAccount<'a>) -> OpAccount<'a> {
    let kernel = &plan.kernels[dispatch.kernel.index()];
    let (mut reads, mut writes, mut blocks) = (vec![], vec![], vec![]);
    for arg in &dispatch.args {
        match arg {
            Arg::Buffer { buffer, access: Access::Read, .. } => reads.push(buffer.0),
            Arg::Buffer { buffer, access: Access::Write, .. } => writes.push(buffer.0),
            Arg::Weight { block, .. } => blocks.push(block.0),
            Arg::U32(_) | Arg::F32(_) => {}
        }
    }
    for list in [&mut reads, &mut writes, &mut blocks] {
        list.sort_unstable();
        list.dedup();
    }
    OpAccount {
        name: &dispatch.name,
        op: &kernel.op,
        variant: &kernel.variant,
        kernel: Some(dispatch.kernel.0),
        entry: &kernel.entry,
        global: dispatch.global,
        offset: dispatch.offset,
        range: dispatch.range,
        local: dispatch.local,
        half_arithmetic: kernel.half_arithmetic,
        reads,
        writes,
        blocks,
        flops: dispatch.flops,
        bytes: dispatch.bytes,
        predicted_ns: dispatch.predicted_ns,
        single_issue_ns: single_issue_ns(plan, dispatch),
        bound: bound(plan, dispatch),
        code: code_of(plan, dispatch),
        ..account
    }
}

fn loads(plan: &Plan, prediction: &Prediction) -> Vec<LoadAccount> {
    let mut open: HashMap<u32, usize> = HashMap::new();
    let mut list: Vec<LoadAccount> = Vec::new();
    let mut times = prediction.loads.iter();
    for (instant, step) in (0u32..).zip(plan.networks.iter().flat_map(|n| &n.steps)) {
        match step {
            Step::Load { block, slot } => {
                let Some(time) = times.next() else { break };
                let at = instant as usize;
                open.insert(block.0, list.len());
                list.push(LoadAccount {
                    step: time.instant,
                    block: block.0,
                    slot: slot.0,
                    start_ns: time.start_ns,
                    ns: time.ns,
                    stall_ns: prediction.start_ns[at + 1] - prediction.start_ns[at],
                    free: instant + 1,
                });
            }
            Step::Free { block } => {
                if let Some(index) = open.get(&block.0) {
                    list[*index].free = instant + 1;
                }
            }
            Step::Dispatch(_) | Step::Gather(_) => {}
        }
    }
    list
}
