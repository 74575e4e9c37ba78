//! Known models: the descriptions in `graphs/models/`.

use super::ModelConfig;
use std::sync::LazyLock;
use toml::{Table, Value};

/// Names and texts of the descriptions in `graphs/models/`.
macro_rules! descriptions {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../models/", $name, ".toml")))),*]
    };
}

const DESCRIPTIONS: &[(&str, &str)] = descriptions![
    "sd15",
    "sd15-inpaint",
    "lcm-dreamshaper",
    "bk-sdm-small",
    "sdxs-512",
    "sd21-base",
    "sd21",
    "sd-turbo",
    "sd21-inpaint",
    "bk-sdm-v2-tiny",
    "emoji-256",
];

static MODELS: LazyLock<Vec<ModelConfig>> = LazyLock::new(|| {
    let parsed = DESCRIPTIONS.iter().map(|(name, text)| parse(name, text));
    parsed.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("graphs/models/{error}"))
});

/// Every known model.
pub fn models() -> &'static [ModelConfig] {
    &MODELS
}

/// The model with a name.
pub fn model(name: &str) -> Option<&'static ModelConfig> {
    MODELS.iter().find(|m| m.name == name)
}

/// A description that is none: its name, and what is wrong where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {what}")]
pub struct ConfigError {
    /// Name of the model.
    pub name: String,
    /// The fault, in one line.
    pub what: String,
}

/// Reads a description: TOML with the fields of [`ModelConfig`]. With `base = NAME`, it lists only
/// the differences from the known model of that name.
///
/// Errors: no TOML; a field that is unknown, missing or of another type; sizes that contradict each
/// other.
pub fn parse(name: &str, text: &str) -> Result<ModelConfig, ConfigError> {
    let fault = |what: String| ConfigError { name: name.to_string(), what };
    let table = resolve(text, 1).map_err(fault)?;
    let config: Result<ModelConfig, _> = table.try_into();
    let config = config.map_err(|error| fault(one_line(&error.to_string())))?;
    let config = ModelConfig { name: name.to_string(), ..config };
    config.check().map_err(fault)?;
    Ok(config)
}

/// The description with the fields of its base filled in. `depth` bounds the chain of bases.
fn resolve(text: &str, depth: usize) -> Result<Table, String> {
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| one_line(&e.to_string()))?;
    let Some(base) = table.remove("base") else { return Ok(table) };
    let known = DESCRIPTIONS.iter().find(|(name, _)| base.as_str() == Some(name));
    let Some((_, text)) = known.filter(|_| depth <= DESCRIPTIONS.len()) else {
        let base = base.to_string().replace(['\n', '\r'], " ");
        return Err(format!("base = {base} names no known model"));
    };
    let mut merged = resolve(text, depth + 1)?;
    merge(&mut merged, table);
    Ok(merged)
}

/// Replaces the fields of `into` by those of `from`, table by table.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        parse("mine", text).expect_err("the description is wrong").to_string()
    }

    #[test]
    fn names_find_their_models() {
        for m in models() {
            assert_eq!(model(&m.name), Some(m));
        }
        assert_eq!(model("sdxl"), None);
    }

    #[test]
    fn a_description_lists_differences_from_its_base() {
        let found = parse("mine", "base = 'sd21-base'\nwidth_px = 256\n[vae]\nres_blocks = 1\n");
        let base = model("sd21-base").unwrap();
        let mut expected = ModelConfig { name: "mine".into(), width_px: 256, ..base.clone() };
        expected.vae.res_blocks = 1;
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn faults_name_the_field() {
        let base = "base = 'sd21-base'\n";
        for (text, expected) in [
            ("px = 256", "mine: unknown field `px`"),
            ("[unet]\nwidth = 3", "mine: unknown field `width`"),
            ("width_px = 'large'", "in `width_px`"),
            ("[text]\ntower = 't5'", "in `text.tower`"),
            ("height_px = 100", "height_px: 100 is no multiple of 64"),
            ("[unet]\nheads = [5, 10]", "unet.heads: 2 entries for 4 levels"),
            ("[unet]\nheads = [3, 10, 20, 20]", "unet.heads: 3 heads for 320 channels"),
            ("[unet]\ndown_attention = [4]", "unet.down_attention: there is no level 4"),
            ("[unet]\ncontext_width = 768", "unet.context_width: 768, but text.width is 1024"),
            ("[unet]\nguidance_width = 256\nclasses = 0", "unet.classes: 0"),
            ("[vae]\nchannels = []", "vae.channels: there are no levels"),
            ("[vae]\nchannels = [48]", "vae.channels: 48 is no multiple of 32"),
        ] {
            let found = fault(&format!("{base}{text}"));
            assert!(found.contains(expected) && !found.contains('\n'), "{text}: {found}");
        }
        assert!(fault("width_px = 64").contains("missing field"));
        assert_eq!(fault("base = 'sdxl'"), "mine: base = \"sdxl\" names no known model");
    }
}
