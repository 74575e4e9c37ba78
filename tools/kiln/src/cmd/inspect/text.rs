//! The account as text for a terminal.

use kiln_bundle::plan::BufferKind;
use kiln_compiler::size::mib;
use std::collections::HashMap;
use std::io::{Result, Write};

use super::schema::{Account, OpAccount, Region};

/// Number of rows of the summary's lists.
const TOP_OPS: usize = 10;
const TOP_LIVE: usize = 4;
/// Width of the budget's bar, in characters.
const BAR: usize = 60;

/// Prints the summary, about one screen.
pub fn summary(account: &Account, out: &mut dyn Write) -> Result<()> {
    let a = account;
    writeln!(out, "{} {} for {}", a.model, a.precision, a.profile)?;
    budget(a, out)?;
    let r = a.requirements;
    let mut needs = format!(
        "{} in one allocation, work-groups of {}, {:.1} KiB of local memory",
        mib(r.max_alloc_bytes),
        r.work_group_size,
        r.local_mem_bytes as f64 / 1024.0
    );
    let parts = a.memory.plan.arena_parts().count();
    if parts > 1 {
        needs += &format!(", {parts} allocations for the arena");
    }
    r.extensions.iter().for_each(|extension| needs += &format!(", {extension}"));
    writeln!(out, "device  {needs}")?;
    if !a.manifest.adapted.is_empty() {
        writeln!(out, "        taken from the device: {}", a.manifest.adapted.join(", "))?;
    }
    let p = &a.predicted;
    writeln!(
        out,
        "time    {} predicted for {} steps; {} a step, of which {} waiting for weights",
        range(p.picture_ns, p.picture_single_issue_ns),
        p.sampler_steps,
        duration(p.step_ns),
        duration(p.step_stall_ns)
    )?;
    let presets = p.fast_picture_ns.iter().zip(1..);
    let presets: Vec<_> = presets.map(|(ns, n)| format!("--fast {n} {}", duration(*ns))).collect();
    if !presets.is_empty() {
        writeln!(out, "        with {}", presets.join(", "))?;
    }
    super::kernels::machine_code(a, out)?;
    let width = a.networks.iter().map(|n| n.name.len() + 1).fold(14, usize::max);
    writeln!(
        out,
        "\n{:<width$}{:>18}{:>9}{:>8}{:>11}{:>11}{:>11}{:>18}",
        "network", "runs", "launches", "GFLOP", "resident", "streamed", "arena peak", "a pass"
    )?;
    for n in &a.networks {
        writeln!(
            out,
            "{:<width$}{:>18}{:>9}{:>8.1}{:>11}{:>11}{:>11}{:>18}",
            n.name,
            n.runs,
            n.launches,
            n.flops as f64 / 1e9,
            mib(n.resident_bytes),
            mib(n.streamed_bytes),
            mib(n.arena_peak_bytes),
            range(n.pass_ns, n.pass_single_issue_ns)
        )?;
    }
    let measured = a.networks.iter().filter_map(|n| Some((n, n.measured_ns?)));
    let measured: Vec<_> = measured.map(|(n, ns)| format!("{} {}", n.name, duration(ns))).collect();
    if !measured.is_empty() {
        let reads = a.weight_reads.as_ref().map(|way| format!("; weights read {way}"));
        let (measured, reads) = (measured.join(", "), reads.unwrap_or_default());
        writeln!(out, "launches of a pass, measured: {measured}{reads}")?;
    }
    for published in &a.published {
        let seconds = published.seconds.iter();
        let times = seconds.map(|(network, s)| format!("{network} {}", duration((s * 1e9) as u64)));
        let times: Vec<_> = times.collect();
        writeln!(out, "published, {}: {}", published.source, times.join(", "))?;
    }
    let peak = &a.peak;
    writeln!(out, "\npeak of the arena: {} at {}.{}", mib(peak.live_bytes), peak.network, peak.op)?;
    let (weights, live): (Vec<&Region>, Vec<&Region>) =
        peak.live.iter().partition(|r| r.kind.is_resident());
    let weight_bytes: u64 = weights.iter().map(|r| r.len_bytes).sum();
    writeln!(out, "  {:<78}{:>12}", "resident weights", mib(weight_bytes))?;
    for r in live.iter().take(TOP_LIVE) {
        writeln!(out, "  {:<78}{:>12}", shorten(r.name, 77), mib(r.len_bytes))?;
    }
    let rest: u64 = live.iter().skip(TOP_LIVE).map(|r| r.len_bytes).sum();
    if rest > 0 {
        let count = live.len() - TOP_LIVE;
        writeln!(out, "  {:<78}{:>12}", format!("{count} more"), mib(rest))?;
    }
    top_ops(a, out)
}

fn budget(a: &Account, out: &mut dyn Write) -> Result<()> {
    let m = a.memory.plan;
    let parts = [
        ('#', "arena", m.arena_bytes),
        ('=', "slots", m.slot_bytes.iter().sum()),
        ('s', "staging", m.staging_bytes),
        ('h', "host", m.host_bytes),
        ('k', "kernels", m.program_bytes),
        ('d', "driver", m.baseline_bytes),
    ];
    let mut bar = String::new();
    let mut sum = 0;
    for (mark, _, bytes) in parts {
        sum += bytes;
        let end = (sum as f64 / m.budget_bytes.max(1) as f64 * BAR as f64).round() as usize;
        bar.extend(std::iter::repeat_n(mark, end.saturating_sub(bar.len())));
    }
    let (peak, budget) = (mib(m.peak_bytes()), mib(m.budget_bytes));
    writeln!(out, "memory  [{bar:<BAR$}] {peak} of {budget}")?;
    let parts: Vec<_> = parts
        .iter()
        .filter(|(_, _, bytes)| *bytes > 0)
        .map(|(mark, name, bytes)| format!("{mark} {name} {}", mib(*bytes)))
        .collect();
    writeln!(out, "  {}", parts.join("   "))?;
    let w = &a.weights;
    writeln!(
        out,
        "weights {} resident, {} streamed: {} a U-Net pass, the rest once a picture",
        mib(w.resident_bytes),
        mib(w.streamed_bytes),
        mib(w.streamed_bytes_a_pass)
    )?;
    writeln!(out, "        tensors: {}", super::tensors::counts(&a.tensors))
}

fn top_ops(a: &Account, out: &mut dyn Write) -> Result<()> {
    let total: u64 = a.ops.iter().map(|op| a.picture_ns(op)).sum();
    let mut sums: HashMap<(usize, &str), (u64, u64, u64, usize)> = HashMap::new();
    for (index, op) in a.ops.iter().enumerate() {
        let sum = sums.entry((op.network, op.name)).or_insert((0, 0, 0, index));
        (sum.0, sum.1, sum.2) = (sum.0 + a.picture_ns(op), sum.1 + op.flops, sum.2 + op.bytes);
    }
    let mut sums: Vec<_> = sums.into_values().collect();
    sums.sort_by_key(|(ns, _, _, index)| (std::cmp::Reverse(*ns), *index));
    writeln!(
        out,
        "\n{:<48}{:<22}{:>9}{:>11}{:>10}",
        "ops with most time in a picture", "variant", "GFLOP", "moved", "share"
    )?;
    for (ns, flops, bytes, index) in sums.iter().take(TOP_OPS) {
        let op = &a.ops[*index];
        writeln!(
            out,
            "{:<48}{:<22}{:>9.1}{:>11}{:>9.1}%",
            shorten(&full_name(a, op), 47),
            format!("{} {}", op.op, op.variant),
            *flops as f64 / 1e9,
            mib(*bytes),
            *ns as f64 / total.max(1) as f64 * 100.0
        )?;
    }
    Ok(())
}

fn full_name(a: &Account, op: &OpAccount) -> String {
    format!("{}.{}", a.networks[op.network].name, op.name)
}

/// Prints a line for each launch.
pub fn ops(a: &Account, out: &mut dyn Write) -> Result<()> {
    writeln!(
        out,
        "{:>5}  {:<58}{:<30}{:<20}{:>10}{:>12}{:>20}{:>12}{:>8}{:>10}",
        "step",
        "op",
        "variant",
        "shape",
        "GFLOP",
        "moved",
        "predicted",
        "bound by",
        "code",
        "measured"
    )?;
    for op in &a.ops {
        writeln!(
            out,
            "{:>5}  {:<58}{:<30}{:<20}{:>10.3}{:>12}{:>20}{:>12}{:>8}{:>10}",
            op.step,
            shorten(&full_name(a, op), 57),
            format!("{} {}", op.op, op.variant),
            format!("{:?}", op.shape),
            op.flops as f64 / 1e9,
            mib(op.bytes),
            range(op.predicted_ns, op.single_issue_ns),
            op.bound,
            super::kernels::counts(op),
            op.measured_ns.map_or("-".to_string(), duration)
        )?;
    }
    Ok(())
}

/// Prints the parts of the budget, and a line for each buffer.
pub fn memory(a: &Account, out: &mut dyn Write) -> Result<()> {
    let m = a.memory.plan;
    let parts = [
        ("arena (activations, resident weights)", m.arena_bytes),
        ("slots of streamed weights", m.slot_bytes.iter().sum()),
        ("staging", m.staging_bytes),
        ("host buffers", m.host_bytes),
        ("compiled kernels", m.program_bytes),
        ("process and driver", m.baseline_bytes),
        ("planned peak", m.peak_bytes()),
        ("budget", m.budget_bytes),
        ("arena above its lower bound", m.arena_bytes.saturating_sub(m.arena_lower_bound_bytes)),
    ];
    for (name, bytes) in parts {
        writeln!(out, "{name:<40}{:>12}{bytes:>14}", mib(bytes))?;
    }
    for attempt in a.attempts {
        let needs = |bytes| format!("refused: it needs {}", mib(bytes));
        let needs = attempt.needs_bytes.map_or("taken".to_string(), needs);
        writeln!(out, "strategy: {} ({needs})", attempt.strategy)?;
    }
    writeln!(
        out,
        "\n{:<72}{:>11}{:>14}{:>12}{:>7}{:>7}",
        "buffer", "kind", "offset", "length", "from", "to"
    )?;
    for r in &a.arena {
        writeln!(
            out,
            "{:<72}{:>11}{:>14}{:>12}{:>7}{:>7}",
            shorten(r.name, 71),
            kind_name(r.kind),
            r.offset_bytes,
            mib(r.len_bytes),
            r.lower,
            r.upper
        )?;
    }
    Ok(())
}

/// The name of a buffer's kind.
pub fn kind_name(kind: BufferKind) -> &'static str {
    match kind {
        BufferKind::Activation => "activation",
        BufferKind::Scratch => "scratch",
        BufferKind::Port => "port",
        BufferKind::Weights => "weights",
        BufferKind::Constants => "constants",
        BufferKind::Factors => "factors",
    }
}

/// Prints a line for each resident block, then one for each load.
pub fn weights(a: &Account, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{:<72}{:>12}  resident", "block", "length")?;
    for b in a.blocks.iter().filter(|b| b.resident) {
        writeln!(out, "{:<72}{:>12}", shorten(b.name, 71), mib(b.len_bytes))?;
    }
    writeln!(
        out,
        "\n{:>5}  {:<65}{:>12}{:>6}{:>10}{:>10}{:>7}",
        "step", "streamed block", "length", "slot", "reading", "waiting", "free"
    )?;
    for load in &a.loads {
        let block = &a.blocks[load.block as usize];
        writeln!(
            out,
            "{:>5}  {:<65}{:>12}{:>6}{:>10}{:>10}{:>7}",
            load.step,
            shorten(block.name, 64),
            mib(block.len_bytes),
            load.slot,
            duration(load.ns),
            duration(load.stall_ns),
            load.free
        )?;
    }
    Ok(())
}

/// A time in readable units.
pub fn duration(ns: u64) -> String {
    let seconds = ns as f64 / 1e9;
    match ns {
        0 => "0".to_string(),
        1..1_000_000 => format!("{:.1} us", seconds * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} ms", seconds * 1e3),
        1_000_000_000..120_000_000_000 => format!("{seconds:.1} s"),
        _ => format!("{}:{:02} min", seconds as u64 / 60, seconds as u64 % 60),
    }
}

/// Two times, the least and the most, or one if they are equal: `32.1 to 59.4 s`.
pub fn range(least_ns: u64, most_ns: u64) -> String {
    let (least, most) = (duration(least_ns), duration(most_ns));
    let unit = |text: &str| text.rsplit_once(' ').map(|(_, unit)| unit.to_string());
    match least.rsplit_once(' ') {
        _ if least == most => least,
        Some((number, own)) if unit(&most).as_deref() == Some(own) => format!("{number} to {most}"),
        _ => format!("{least} to {most}"),
    }
}

/// The end of a name, if the name is longer than `width`.
pub fn shorten(name: &str, width: usize) -> String {
    let skip = name.chars().count().saturating_sub(width);
    if skip == 0 {
        name.to_string()
    } else {
        format!("…{}", name.chars().skip(skip + 1).collect::<String>())
    }
}
