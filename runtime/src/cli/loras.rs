//! LoRAs that a run switches on.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use kiln_bundle::lora::{self, Lora};
use kiln_bundle::plan::Plan;

use crate::error::RuntimeError;

/// Largest strength, either way.
const MAX_STRENGTH: f32 = 100.0;

/// A LoRA's file and its strength.
#[derive(Clone, PartialEq, Debug)]
pub struct LoraFile {
    /// The file, which `kiln lora` made for the bundle.
    pub path: PathBuf,
    /// Factor of its change; 1 is the change as it was trained.
    pub strength: f32,
}

impl FromStr for LoraFile {
    type Err = String;

    /// Reads `FILE` or `FILE:STRENGTH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.rsplit_once(':').and_then(|(path, strength)| {
            let strength: f32 = strength.parse().ok()?;
            Some((path, strength))
        });
        let (path, strength) = parsed.unwrap_or((text, 1.0));
        if path.is_empty() || !(-MAX_STRENGTH..=MAX_STRENGTH).contains(&strength) {
            let range = format!("the strength is from -{MAX_STRENGTH} to {MAX_STRENGTH}");
            return Err(format!("FILE or FILE:STRENGTH, as in style.kiln-lora:0.8; {range}"));
        }
        Ok(LoraFile { path: Path::new(path).to_owned(), strength })
    }
}

/// Reads LoRAs and checks that a bundle has room for them.
///
/// Errors: `Lora`.
pub fn read_loras(files: &[LoraFile], plan: &Plan) -> Result<Vec<(Arc<Lora>, f32)>, RuntimeError> {
    let read = |file: &LoraFile| Ok((Arc::new(Lora::read(&file.path)?), file.strength));
    let loras = files.iter().map(read).collect::<Result<Vec<_>, RuntimeError>>()?;
    if !loras.is_empty() {
        lora::check_all(loras.iter().map(|(lora, _)| &**lora), plan)?;
    }
    Ok(loras)
}
