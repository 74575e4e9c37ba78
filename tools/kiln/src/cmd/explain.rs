//! `kiln explain`: the reasons for an op's variant, a buffer's address and a weight's residency.

use anyhow::{Result, bail};
use kiln_bundle::plan::{BlockKind, Plan};
use kiln_bundle::rationale::{Choice, Cost, Verdict};
use kiln_compiler::plan::cost::arithmetic;
use kiln_compiler::size::mib;
use std::io::{self, Write};
use std::path::PathBuf;

use super::inspect::{Account, OpAccount, Region, duration, kind_name, range};
use super::print::printed;

/// Number of names offered if there is no exact match.
const OFFERED: usize = 12;
/// Number of buffers listed at the peak and beside a buffer.
const LISTED: usize = 6;

/// Explain an op or a buffer of a bundle: variant, address, residency.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln explain sd21.kiln unet.input_blocks.1.0.in_layers.2
  kiln explain sd21.kiln decoder.decoder.conv_in

The lists of kiln inspect --ops and --memory have the names. A unique part of one is enough.")]
pub struct Args {
    /// Compiled model
    pub bundle: PathBuf,
    /// Name of an op or a buffer, with or without its network
    pub name: String,
}

/// Prints the reasons.
pub fn run(args: Args) -> Result<()> {
    let bundle = super::open_bundle(&args.bundle)?;
    let account = Account::new(bundle.plan(), None)?;
    let explainer = Explainer { plan: bundle.plan(), account: &account };
    let (ops, buffers) = explainer.find(&args.name)?;
    printed(|out| {
        for first in &ops {
            explainer.op(first, out)?;
        }
        let beside = explainer.outputs(&ops);
        let all = buffers.iter().chain(beside.iter().filter(|b| !contains(&buffers, b)));
        all.into_iter().try_for_each(|buffer| explainer.buffer(buffer, out))
    })
}

fn contains(list: &[&Region], buffer: &Region) -> bool {
    list.iter().any(|b| b.buffer == buffer.buffer)
}

struct Explainer<'a> {
    plan: &'a Plan,
    account: &'a Account<'a>,
}

impl<'a> Explainer<'a> {
    fn full_name(&self, op: &OpAccount) -> String {
        format!("{}.{}", self.account.networks[op.network].name, op.name)
    }

    /// The first launch of every op with this name, and the buffers with this name.
    ///
    /// Errors: nothing has the name, or too many names contain it.
    fn find(&self, name: &str) -> Result<(Vec<&'a OpAccount<'a>>, Vec<&'a Region<'a>>)> {
        let mut firsts: Vec<&OpAccount> = self.account.ops.iter().collect();
        firsts.dedup_by(|a, b| (a.network, a.name) == (b.network, b.name));
        let select = |matches: &dyn Fn(&str) -> bool| {
            let op = |op: &&&OpAccount| matches(op.name) || matches(&self.full_name(op));
            let ops: Vec<&OpAccount> = firsts.iter().filter(op).copied().collect();
            let buffers = self.account.arena.iter().filter(|b| matches(b.name));
            (ops, buffers.collect::<Vec<&Region>>())
        };
        let exact = select(&|candidate| candidate == name);
        if !exact.0.is_empty() || !exact.1.is_empty() {
            return Ok(exact);
        }
        let (ops, buffers) = select(&|candidate| candidate.contains(name));
        let mut names: Vec<String> = ops.iter().map(|op| self.full_name(op)).collect();
        names.extend(buffers.iter().map(|b| b.name.to_string()));
        names.sort();
        names.dedup();
        match names.len() {
            0 => bail!("no op or buffer {name:?}; list them with kiln inspect --ops or --memory"),
            1 => Ok((ops, buffers)),
            count => {
                let shown = names.iter().take(OFFERED).cloned().collect::<Vec<_>>().join(", ");
                let more = if count > OFFERED { ", ..." } else { "" };
                bail!("{count} ops and buffers have {name:?} in their names: {shown}{more}")
            }
        }
    }

    fn launches(&self, first: &OpAccount) -> Vec<&'a OpAccount<'a>> {
        let same = |op: &&OpAccount| (op.network, op.name) == (first.network, first.name);
        self.account.ops.iter().filter(same).collect()
    }

    /// The buffers that the ops write.
    fn outputs(&self, ops: &[&OpAccount]) -> Vec<&'a Region<'a>> {
        let launches = ops.iter().flat_map(|first| self.launches(first));
        let mut ids: Vec<u32> = launches.flat_map(|op| op.writes.iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.iter().filter_map(|id| self.account.arena.get(*id as usize)).collect()
    }

    fn op(&self, first: &OpAccount, out: &mut dyn Write) -> io::Result<()> {
        let launches = self.launches(first);
        let sum = |of: fn(&OpAccount) -> u64| launches.iter().map(|op| of(op)).sum::<u64>();
        let (flops, bytes, ns) =
            (sum(|op| op.flops), sum(|op| op.bytes), sum(|op| op.predicted_ns));
        writeln!(out, "op {}", self.full_name(first))?;
        writeln!(out, "  {} {}", first.op, first.problem)?;
        let last = launches.last().map_or(first.step, |op| op.step);
        let count = launches.len();
        writeln!(out, "  {count} launches, the first at step {}, the last at {last}", first.step)?;
        let rates = &self.plan.rationale.rates;
        let arithmetic = arithmetic(first.op, first.variant);
        let work = |op: &&OpAccount| {
            rates.work_ns((op.flops as f64 / arithmetic) as u64, op.half_arithmetic, 0)
        };
        let (compute, memory) = (launches.iter().map(work).sum(), rates.work_ns(0, false, bytes));
        let half = launches.iter().any(|op| op.half_arithmetic);
        let kind = match (half, arithmetic > 1.0) {
            (true, _) => " in FP16",
            (_, true) => " in integers",
            _ => "",
        };
        let longest = launches.iter().max_by_key(|op| op.predicted_ns);
        writeln!(
            out,
            "  {:.3} GFLOP{kind} ({}) and {} moved ({}): {} predicted, bound by {}",
            flops as f64 / 1e9,
            duration(compute),
            mib(bytes),
            duration(memory),
            range(ns, sum(|op| op.single_issue_ns)),
            longest.map_or("", |op| op.bound)
        )?;
        self.variant(first, out)?;
        self.weights(&launches, out)?;
        writeln!(out)
    }

    fn choice(&self, first: &OpAccount) -> Option<&'a Choice> {
        let rationale = &self.plan.rationale;
        let op = rationale.ops.iter().find(|op| op.instant == first.step)?;
        rationale.choices.get(op.choice as usize)
    }

    fn variant(&self, first: &OpAccount, out: &mut dyn Write) -> io::Result<()> {
        let alternatives = self.choice(first).map_or(&[][..], |c| &c.alternatives);
        if alternatives.is_empty() {
            let why = "rows of a table are read from the bundle, so that it is never in memory";
            return writeln!(out, "  {} {}: {why}", first.op, first.variant);
        }
        writeln!(out, "  variants, in the order in which they were considered")?;
        for alternative in alternatives {
            let verdict = match alternative.verdict {
                Verdict::Chosen(_) => "chosen: the first that applies, fits and pays",
                Verdict::Weights(_) => "its larger weights take longer to read than it saves",
                Verdict::Later(_) => "would serve, but comes after the chosen one",
                Verdict::Scratch(_) => "too much scratch memory for the strategy",
                Verdict::TooLong(_) => "a single work-group takes too long for a launch",
                Verdict::DoesNotApply => "does not apply to these shapes on this device",
            };
            let cost = alternative.verdict.cost().map_or(String::new(), describe);
            writeln!(out, "    {:<18}{verdict}{cost}", alternative.variant)?;
        }
        for attempt in self.account.attempts {
            match attempt.needs_bytes {
                Some(bytes) => {
                    writeln!(out, "  strategy refused: {}: needs {}", attempt.strategy, mib(bytes))?
                }
                None => writeln!(out, "  strategy taken: {}", attempt.strategy)?,
            }
        }
        Ok(())
    }

    fn weights(&self, launches: &[&OpAccount], out: &mut dyn Write) -> io::Result<()> {
        let mut ids: Vec<u32> = launches.iter().flat_map(|op| op.blocks.iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let block = &self.account.blocks[id as usize];
            writeln!(out, "  weights {} ({})", block.name, mib(block.len_bytes))?;
            match block.buffer {
                Some(buffer) => self.resident(id, buffer, out)?,
                None => self.streamed(id, out)?,
            }
        }
        Ok(())
    }

    fn resident(&self, id: u32, buffer: u32, out: &mut dyn Write) -> io::Result<()> {
        let at = self.account.arena[buffer as usize].offset_bytes;
        let why = if self.account.blocks[id as usize].kind == BlockKind::Constants {
            "the small constants of a network are read together, once".to_string()
        } else {
            self.intensity(id, "the budget had room for those with the least arithmetic a byte")
        };
        writeln!(out, "    resident at {at}: {why}")
    }

    fn streamed(&self, id: u32, out: &mut dyn Write) -> io::Result<()> {
        let loads = self.account.loads.iter().filter(|load| load.block == id);
        for load in loads {
            let network = self.account.networks.iter();
            let index = network.take_while(|n| n.upper <= load.step).count();
            let name = self.account.networks[index].name;
            let why = match self.plan.networks[index].role {
                role if role.is_denoiser() => {
                    self.intensity(id, "blocks with less arithmetic a byte took the room there was")
                }
                _ => format!("{name} does not repeat, so keeping it would save no reading"),
            };
            writeln!(out, "    streamed: {why}")?;
            let ahead = self.account.start_ns[load.step as usize + 1] as i64
                - load.stall_ns as i64
                - load.start_ns;
            writeln!(
                out,
                "    reading into slot {} takes {}, begins {} before the launch wants it, which \
                 waits {}; free after step {}",
                load.slot,
                duration(load.ns),
                duration(ahead.max(0) as u64),
                duration(load.stall_ns),
                load.free - 1
            )?;
        }
        Ok(())
    }

    /// Arithmetic of the launches that read a block, in FLOP a byte of the block.
    fn arithmetic(&self, id: u32) -> f64 {
        let ops = self.account.ops.iter().filter(|op| op.blocks.contains(&id));
        let flops: u64 = ops.map(|op| op.flops).sum();
        flops as f64 / self.account.blocks[id as usize].len_bytes.max(1) as f64
    }

    fn intensity(&self, id: u32, rule: &str) -> String {
        let blocks = self.account.blocks.iter().enumerate();
        let large = blocks.filter(|(_, b)| b.resident && b.kind == BlockKind::Weights);
        let most = large.map(|(i, _)| self.arithmetic(i as u32)).fold(0.0, f64::max);
        let own = self.arithmetic(id);
        let streamed = !self.account.blocks[id as usize].resident;
        let rule =
            if streamed && own < most { "no room was left when its turn came" } else { rule };
        format!("{rule}; this one has {own:.0} FLOP a byte, the resident ones up to {most:.0}")
    }

    fn buffer(&self, b: &Region, out: &mut dyn Write) -> io::Result<()> {
        let a = self.account;
        writeln!(out, "buffer {} ({}, {})", b.name, kind_name(b.kind), mib(b.len_bytes))?;
        let end = b.offset_bytes + b.len_bytes;
        writeln!(
            out,
            "  bytes {} to {end} of an arena of {}",
            b.offset_bytes, a.memory.plan.arena_bytes
        )?;
        writeln!(
            out,
            "  live over steps {} to {}, from {} to {}",
            b.lower,
            b.upper,
            self.at(b.lower),
            self.at(b.upper.saturating_sub(1))
        )?;
        self.neighbours(b, out)?;
        let life = b.lower..b.upper.min(a.live_bytes.len() as u32);
        let Some(fullest) = life.max_by_key(|t| a.live_bytes[*t as usize]) else {
            return writeln!(out);
        };
        let live = a.live_bytes[fullest as usize];
        writeln!(out, "  most is live beside it at {}: {} in all", self.at(fullest), mib(live))?;
        let peak = &a.peak;
        let at_peak = b.lower <= peak.step && peak.step < b.upper;
        let part = if at_peak { "part of" } else { "not part of" };
        writeln!(
            out,
            "  {part} the arena's peak, {} at {}.{}{}",
            mib(peak.live_bytes),
            peak.network,
            peak.op,
            if at_peak { "; what forces it:" } else { "" }
        )?;
        if !at_peak {
            return writeln!(out);
        }
        let (weights, rest): (Vec<&Region>, Vec<&Region>) =
            peak.live.iter().partition(|r| r.kind.is_resident());
        let bytes: u64 = weights.iter().map(|r| r.len_bytes).sum();
        writeln!(out, "    {:>12}  {} resident weight blocks", mib(bytes), weights.len())?;
        for r in rest.iter().take(LISTED) {
            writeln!(out, "    {:>12}  {}", mib(r.len_bytes), r.name)?;
        }
        writeln!(out)
    }

    fn at(&self, instant: u32) -> String {
        let after = self.account.ops.partition_point(|op| op.step < instant);
        let op = self.account.ops.get(after).or(self.account.ops.last());
        op.map_or(String::new(), |op| self.full_name(op))
    }

    /// The neighbours of a buffer in address and in time.
    fn neighbours(&self, b: &Region, out: &mut dyn Write) -> io::Result<()> {
        let arena = &self.account.arena;
        let end = |r: &Region| r.offset_bytes + r.len_bytes;
        let together = |r: &&Region| r.lower < b.upper && b.lower < r.upper && r.buffer != b.buffer;
        let below = arena.iter().filter(together).filter(|r| end(r) <= b.offset_bytes);
        let above = arena.iter().filter(together).filter(|r| r.offset_bytes >= end(b));
        let place = |side: &str, region: Option<&Region>| match region {
            Some(r) => {
                format!("  {side} it: {} ({} at {})", r.name, mib(r.len_bytes), r.offset_bytes)
            }
            None => format!("  {side} it: nothing while it lives"),
        };
        writeln!(out, "{}", place("below", below.max_by_key(|r| end(r))))?;
        writeln!(out, "{}", place("above", above.min_by_key(|r| r.offset_bytes)))?;
        let shares = |r: &&Region| r.offset_bytes < end(b) && b.offset_bytes < end(r);
        let before = arena.iter().filter(shares).filter(|r| r.upper <= b.lower);
        let after = arena.iter().filter(shares).filter(|r| r.lower >= b.upper);
        if let Some(r) = before.max_by_key(|r| r.upper) {
            writeln!(out, "  its bytes held {} until step {}", r.name, r.upper)?;
        }
        if let Some(r) = after.min_by_key(|r| r.lower) {
            writeln!(out, "  its bytes hold {} from step {}", r.name, r.lower)?;
        }
        Ok(())
    }
}

fn describe(cost: Cost) -> String {
    format!(
        " ({} launches, {} scratch, {} predicted)",
        cost.launches,
        mib(cost.scratch_bytes),
        duration(cost.predicted_ns)
    )
}
