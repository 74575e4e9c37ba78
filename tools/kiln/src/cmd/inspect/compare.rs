//! The differences between two bundles.

use kiln_compiler::size::mib;
use std::collections::BTreeMap;
use std::io::{Result, Write};

use super::schema::Account;
use super::text::{duration, shorten};

/// Number of listed ops, those that differ most first.
const LISTED: usize = 20;

/// Prints the differences.
pub fn print(a: &Account, b: &Account, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "A: {} {} for {}", a.model, a.precision, a.profile)?;
    writeln!(out, "B: {} {} for {}", b.model, b.precision, b.profile)?;
    writeln!(out, "\n{:<36}{:>14}{:>14}{:>14}", "", "A", "B", "B - A")?;
    figures(a, b, out)?;
    networks(a, b, out)?;
    variants(a, b, out)?;
    ops(a, b, out)
}

/// A figure of an account.
type Figure = fn(&Account) -> u64;

fn figures(a: &Account, b: &Account, out: &mut dyn Write) -> Result<()> {
    let bytes: [(&str, Figure); 9] = [
        ("budget", |a| a.memory.plan.budget_bytes),
        ("planned peak", |a| a.memory.peak_bytes),
        ("arena", |a| a.memory.plan.arena_bytes),
        ("live at the arena's peak", |a| a.peak.live_bytes),
        ("slots", |a| a.memory.plan.slot_bytes.iter().sum()),
        ("compiled kernels", |a| a.memory.plan.program_bytes),
        ("resident weights", |a| a.weights.resident_bytes),
        ("streamed weights", |a| a.weights.streamed_bytes),
        ("streamed a pass of the U-Net", |a| a.weights.streamed_bytes_a_pass),
    ];
    for (name, of) in bytes {
        line(out, name, of(a), of(b), mib)?;
    }
    line(out, "predicted step", a.predicted.step_ns, b.predicted.step_ns, duration)?;
    line(out, "of it waiting", a.predicted.step_stall_ns, b.predicted.step_stall_ns, duration)?;
    line(out, "predicted picture", a.predicted.picture_ns, b.predicted.picture_ns, duration)?;
    if (a.peak.network, a.peak.op) != (b.peak.network, b.peak.op) {
        let (p, q) = (&a.peak, &b.peak);
        writeln!(out, "the peak moves from {}.{} to {}.{}", p.network, p.op, q.network, q.op)?;
    }
    Ok(())
}

fn line(out: &mut dyn Write, name: &str, a: u64, b: u64, show: fn(u64) -> String) -> Result<()> {
    writeln!(out, "{name:<36}{:>14}{:>14}{:>14}", show(a), show(b), difference(a, b, show))
}

fn difference(a: u64, b: u64, show: fn(u64) -> String) -> String {
    match b.cmp(&a) {
        std::cmp::Ordering::Less => format!("-{}", show(a - b)),
        std::cmp::Ordering::Equal => "same".to_string(),
        std::cmp::Ordering::Greater => format!("+{}", show(b - a)),
    }
}

fn networks(a: &Account, b: &Account, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "\na pass of")?;
    for n in &a.networks {
        match b.networks.iter().find(|m| m.name == n.name) {
            Some(m) => line(out, n.name, n.pass_ns, m.pass_ns, duration)?,
            None => writeln!(out, "{:<36}{:>14}{:>14}", n.name, duration(n.pass_ns), "absent")?,
        }
    }
    for m in b.networks.iter().filter(|m| a.networks.iter().all(|n| n.name != m.name)) {
        writeln!(out, "{:<36}{:>14}{:>14}", m.name, "absent", duration(m.pass_ns))?;
    }
    Ok(())
}

fn variants(a: &Account, b: &Account, out: &mut dyn Write) -> Result<()> {
    let table = |account: &Account| -> BTreeMap<String, u64> {
        let kernels = account.kernels.iter();
        kernels.map(|k| (format!("{} {}", k.op, k.variant), k.launches as u64)).collect()
    };
    let (before, after) = (table(a), table(b));
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let counts = names.into_iter().map(|name| {
        let count = |table: &BTreeMap<String, u64>| table.get(name).copied().unwrap_or(0);
        (name, count(&before), count(&after))
    });
    let changed: Vec<_> = counts.filter(|(_, a, b)| a != b).collect();
    if changed.is_empty() {
        return writeln!(out, "\nlaunches of each variant: same");
    }
    writeln!(out, "\nlaunches of")?;
    changed.iter().try_for_each(|(name, a, b)| line(out, name, *a, *b, |n| n.to_string()))
}

/// An op in one of the accounts: its variant and the predicted time of its launches in an image, in
/// nanoseconds. `None` if the account lacks it.
type Side = Option<(String, u64)>;

fn ops(a: &Account, b: &Account, out: &mut dyn Write) -> Result<()> {
    let mut table: BTreeMap<String, [Side; 2]> = BTreeMap::new();
    for (side, account) in [a, b].into_iter().enumerate() {
        for op in &account.ops {
            let name = format!("{}.{}", account.networks[op.network].name, op.name);
            let entry = &mut table.entry(name).or_default()[side];
            let (_, ns) = entry.get_or_insert_with(|| (format!("{} {}", op.op, op.variant), 0));
            *ns += account.picture_ns(op);
        }
    }
    let ns = |side: &Side| side.as_ref().map_or(0, |(_, ns)| *ns);
    let variant = |side: &Side| side.as_ref().map_or("absent".to_string(), |(v, _)| v.clone());
    let mut changed: Vec<_> = table.iter().filter(|(_, [a, b])| a != b).collect();
    changed.sort_by_key(|(_, [a, b])| std::cmp::Reverse(ns(a).abs_diff(ns(b))));
    if changed.is_empty() {
        return writeln!(out, "\nops: same");
    }
    writeln!(out, "\n{} ops differ; time in a picture:", changed.len())?;
    for (name, [a, b]) in changed.iter().take(LISTED) {
        let (from, to) = (variant(a), variant(b));
        let change = if from == to { from } else { format!("{from} -> {to}") };
        writeln!(
            out,
            "  {:<48}{:>12}{:>12}{:>12}  {change}",
            shorten(name, 47),
            duration(ns(a)),
            duration(ns(b)),
            difference(ns(a), ns(b), duration)
        )?;
    }
    Ok(())
}
