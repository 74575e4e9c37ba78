//! Measured times of launches, from the file that `kiln run --profile` writes.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::Path;

use super::schema::{NetworkAccount, OpAccount};

/// The fields of a profile that `kiln inspect` reads.
#[derive(Deserialize)]
pub struct Measured {
    model: String,
    /// How weights were read during the measurement.
    pub weight_reads: Option<String>,
    launches: Vec<Launch>,
}

#[derive(Deserialize)]
struct Launch {
    network: String,
    step: u32,
    name: String,
    mean_ns: u64,
}

impl Measured {
    /// Reads a profile of the model.
    ///
    /// Errors: the file is unreadable, has no launch times, or is of another model.
    pub fn load(path: &Path, model: &str) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading measured times from {}", path.display()))?;
        let this: Self = serde_json::from_str(&text).with_context(|| {
            format!("{} has no launch times; make them with kiln run --profile", path.display())
        })?;
        if this.model != model {
            bail!("{} was measured with {}, this is {model}", path.display(), this.model);
        }
        Ok(this)
    }

    /// Adds the measured times to the predicted ones.
    ///
    /// Errors: a measured launch is not in the plan.
    pub fn enter(&self, networks: &mut [NetworkAccount], ops: &mut [OpAccount]) -> Result<()> {
        for launch in &self.launches {
            let network = networks.iter_mut().find(|n| n.name == launch.network);
            let instant = network.as_ref().and_then(|n| n.lower.checked_add(launch.step));
            let op = instant.and_then(|t| ops.binary_search_by_key(&t, |op| op.step).ok());
            let Some(op) = op.map(|i| &mut ops[i]).filter(|op| op.name == launch.name) else {
                bail!(
                    "step {} of {} is not {} here: the times are another bundle's",
                    launch.step,
                    launch.network,
                    launch.name
                );
            };
            op.measured_ns = Some(launch.mean_ns);
            if let Some(network) = network {
                *network.measured_ns.get_or_insert(0) += launch.mean_ns;
            }
        }
        Ok(())
    }
}
