//! `kiln compile --kernels`: the kernels of a plan as files, for compilers without a device.

use anyhow::{Context, Result};
use kiln_bundle::plan::{Plan, Step};
use kiln_bundle::whole;
use kiln_compiler::plan::time::passes;
use std::fmt::Write as _;
use std::path::Path;

/// Name of the list of kernels in the folder.
const LIST: &str = "kernels.tsv";

/// Writes each kernel's OpenCL C into `folder`, which is made if there is none. The list of kernels
/// has a line for each, in order of their first launches: file, entry point, op, variant, first
/// launch, build options, and the predicted time of all its launches for a picture, in nanoseconds.
///
/// Errors: the folder cannot be written.
pub fn write(plan: &Plan, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let mut uses: Vec<(&str, u64)> = vec![("", 0); plan.kernels.len()];
    for network in &plan.networks {
        let passes = passes(&plan.manifest, network.role);
        for step in &network.steps {
            let Step::Dispatch(dispatch) = step else { continue };
            let (name, ns) = &mut uses[dispatch.kernel.index()];
            if name.is_empty() {
                *name = &dispatch.name;
            }
            *ns += passes * dispatch.predicted_ns;
        }
    }
    let mut list = String::from("file\tentry\top\tvariant\tlaunch\toptions\tpicture_ns\n");
    for (kernel, (launch, ns)) in plan.kernels.iter().zip(&uses) {
        let file = format!("{}.cl", kernel.entry);
        let source = &plan.sources[kernel.source as usize];
        put(folder, &file, source)?;
        let (entry, op, variant) = (&kernel.entry, &kernel.op, &kernel.variant);
        writeln!(list, "{file}\t{entry}\t{op}\t{variant}\t{launch}\t{}\t{ns}", kernel.options)?;
    }
    put(folder, LIST, &list)
}

fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    whole::write(&path, |file| std::io::Write::write_all(file, text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}
