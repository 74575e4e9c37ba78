//! Kernels, and the machine code that their times follow from.

use kiln_bundle::plan::Plan;
use kiln_bundle::rationale::KernelCode;
use kiln_compiler::size::mib;
use std::collections::BTreeMap;
use std::io::{Result, Write};

use super::schema::{Account, OpAccount};
use super::text::{duration, range};

/// Prints a line for each variant, then one for each kernel.
pub fn print(plan: &Plan, a: &Account, out: &mut dyn Write) -> Result<()> {
    writeln!(
        out,
        "{:<36}{:>9}{:>9}{:>10}{:>12}{:>11}",
        "variant", "kernels", "launches", "GFLOP", "moved", "predicted"
    )?;
    for k in &a.kernels {
        writeln!(
            out,
            "{:<36}{:>9}{:>9}{:>10.1}{:>12}{:>11}",
            format!("{} {}", k.op, k.variant),
            k.kernels,
            k.launches,
            k.flops as f64 / 1e9,
            mib(k.bytes),
            duration(k.predicted_ns)
        )?;
    }
    kernel_lines(plan, a, out)
}

fn kernel_lines(plan: &Plan, a: &Account, out: &mut dyn Write) -> Result<()> {
    writeln!(
        out,
        "\n{:>6}  {:<30}{:<40}{:>9}{:>14}{:>11}{:>9}{:>8}{:>20}  code of",
        "kernel",
        "variant",
        "entry",
        "launches",
        "work-group",
        "registers",
        "threads",
        "spills",
        "predicted"
    )?;
    for (index, k) in plan.kernels.iter().enumerate() {
        let own = || a.ops.iter().filter(|op| op.kernel == Some(index as u32));
        let name = format!("{} {}", k.op, k.variant);
        let first = own().next();
        let local = first.and_then(|op| op.local);
        let code = first.and_then(|op| op.code);
        let of_code = |show: fn(&KernelCode) -> String| code.map_or("-".to_string(), show);
        writeln!(
            out,
            "{index:>6}  {name:<30}{:<40}{:>9}{:>14}{:>11}{:>9}{:>8}{:>20}  {}",
            k.entry,
            own().count(),
            local.map_or("driver's".to_string(), |l| l.map(|n| n.to_string()).join("x")),
            of_code(|code| code.registers.to_string()),
            of_code(|code| format!("{} %", code.occupancy_percent)),
            of_code(|code| code.spills.to_string()),
            range(own().map(|op| op.predicted_ns).sum(), own().map(|op| op.single_issue_ns).sum()),
            of_code(|code| code.scaled_from.clone().unwrap_or("itself".to_string()))
        )?;
    }
    Ok(())
}

/// Says what a range of times follows from.
pub fn machine_code(a: &Account, out: &mut dyn Write) -> Result<()> {
    let kernels = a.ops.iter().filter_map(|op| Some((op.kernel?, counts(op))));
    let kernels: BTreeMap<u32, &str> = kernels.collect();
    let count = |kind| kernels.values().filter(|counts| **counts == kind).count();
    let (own, scaled, all) = (count("own"), count("scaled"), kernels.len());
    if own + scaled == 0 {
        return Ok(());
    }
    write!(out, "        least: busiest pipe, most: one instruction at a time; ")?;
    writeln!(out, "{own} of {all} kernels counted, {scaled} scaled")
}

/// Whose machine code the time of a launch follows from.
pub fn counts(op: &OpAccount) -> &'static str {
    match op.code {
        Some(code) if code.scaled_from.is_some() => "scaled",
        Some(_) => "own",
        None => "-",
    }
}
