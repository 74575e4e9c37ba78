//! `kiln inspect`: where every byte and every millisecond of a bundle goes.

mod account;
mod compare;
mod dot;
mod html;
mod kernels;
mod measured;
pub mod presets;
mod schema;
mod tensors;
mod text;

pub use schema::{Account, OpAccount, Region};
pub use text::{duration, kind_name, range};

use anyhow::{Context, Result, bail};
use kiln_bundle::plan::Plan;
use kiln_bundle::whole;
use std::path::{Path, PathBuf};

use super::print::{self, printed};
use measured::Measured;

/// Show where a bundle's memory and time go, without a device.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln inspect sd21.kiln
  kiln inspect sd21.kiln --html sd21.html
  kiln inspect sd21.kiln --compare sd21-mali.kiln
  kiln inspect sd21.kiln --source conv2d | less
  kiln inspect sd21.kiln --json | jq .memory

Times are predicted from the rates in the device's profile; kiln run --profile measures them.")]
pub struct Args {
    /// Compiled model
    pub bundle: PathBuf,
    /// Every launch: shape, variant, arithmetic, bytes, time
    #[arg(long, group = "form")]
    pub ops: bool,
    /// Every part of the budget, and every buffer of the arena
    #[arg(long, group = "form")]
    pub memory: bool,
    /// Kernel variants and the kernels made of them
    #[arg(long, group = "form")]
    pub kernels: bool,
    /// Storage of each tensor, and every block of weights: resident or streamed, the time of its
    /// read, and the wait of a launch for it
    #[arg(long, group = "form")]
    pub weights: bool,
    /// Everything as JSON, for programs; docs/reference/inspect-json.md lists the fields
    #[arg(long, group = "form")]
    pub json: bool,
    /// The plan as a graph of launches and buffers, for Graphviz
    #[arg(long, group = "form")]
    pub dot: bool,
    /// The OpenCL C of kernels: an index, an entry point, or part of an op's or a launch's name
    #[arg(long, value_name = "KERNEL", group = "form")]
    pub source: Option<String>,
    /// Write an interactive page for a browser, in one file
    #[arg(long, value_name = "FILE.html", group = "form")]
    pub html: Option<PathBuf>,
    /// Differences between this bundle and another one
    #[arg(long, value_name = "OTHER.kiln", group = "form")]
    pub compare: Option<PathBuf>,
    /// Show measured times beside predicted ones. The file is from kiln run --profile
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
}

/// Prints the requested form.
pub fn run(args: Args) -> Result<()> {
    if let Some(page) = &args.html {
        let report = args.report.as_deref().map(|path| ("--report", path));
        let inputs = report.into_iter().chain([("the bundle", args.bundle.as_path())]);
        super::files::check(inputs, "--html", page, None)?;
    }
    let bundle = super::open_bundle(&args.bundle)?;
    let plan = bundle.plan();
    let report = args.report.as_deref();
    let measured = report.map(|path| Measured::load(path, &plan.manifest.model)).transpose()?;
    let account = Account::new(plan, measured.as_ref())?;
    if let Some(path) = &args.html {
        return write_page(path, &account);
    }
    if let Some(other) = &args.compare {
        let other = super::open_bundle(other)?;
        let other = Account::new(other.plan(), None)?;
        return printed(|out| compare::print(&account, &other, out));
    }
    if let Some(name) = &args.source {
        let text = source(plan, name)?;
        return printed(|out| out.write_all(text.as_bytes()));
    }
    printed(|out| match &args {
        _ if args.json => {
            serde_json::to_writer_pretty(&mut *out, &account)?;
            writeln!(out)
        }
        _ if args.dot => dot::print(plan, out),
        _ if args.ops => text::ops(&account, out),
        _ if args.memory => text::memory(&account, out),
        _ if args.kernels => kernels::print(plan, &account, out),
        _ if args.weights => {
            tensors::print(&account.tensors, out)?;
            text::weights(&account, out)
        }
        _ => text::summary(&account, out),
    })
}

fn write_page(path: &Path, account: &Account) -> Result<()> {
    whole::write(path, |file| html::write(account, file))
        .with_context(|| format!("writing {}", path.display()))?;
    print::line(format_args!("wrote {}", path.display()))
}

/// The sources of the kernels that a name selects, in sequence.
fn source(plan: &Plan, name: &str) -> Result<String> {
    let index: Option<usize> = name.parse().ok();
    // An entry point's name ends with its source's suffix, which may be left out.
    let is_named = |entry: &str| {
        entry == name || entry.rsplit_once('_').is_some_and(|(start, _)| start == name)
    };
    let exact: Vec<usize> = (0..plan.kernels.len())
        .filter(|i| index == Some(*i) || is_named(&plan.kernels[*i].entry))
        .collect();
    let found = if exact.is_empty() { kernels_named(plan, name) } else { exact };
    if found.is_empty() {
        bail!("no kernel {name:?}; list them with kiln inspect --kernels");
    }
    let mut text = String::new();
    let mut last = None;
    for kernel in found.iter().map(|i| &plan.kernels[*i]) {
        if last.replace(kernel.source) != Some(kernel.source) {
            let source = plan.sources.get(kernel.source as usize).map_or("", String::as_str);
            let (op, variant, options) = (&kernel.op, &kernel.variant, &kernel.options);
            text += &format!("// {op} {variant}, built with {options}\n{}\n\n", source.trim_end());
        }
    }
    Ok(text)
}

fn kernels_named(plan: &Plan, name: &str) -> Vec<usize> {
    let steps = plan.networks.iter().flat_map(|n| &n.steps);
    let launched = steps.filter_map(|step| match step {
        kiln_bundle::plan::Step::Dispatch(d) if d.name.contains(name) => Some(d.kernel.index()),
        _ => None,
    });
    let named = (0..plan.kernels.len()).filter(|i| {
        let kernel = &plan.kernels[*i];
        format!("{} {}", kernel.op, kernel.variant).contains(name)
    });
    let mut found: Vec<usize> = launched.chain(named).collect();
    found.sort_unstable();
    found.dedup();
    found
}
