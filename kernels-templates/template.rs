//! Rendering: one place that knows tera.

use anyhow::{Context as _, Result};
use kiln_ir::DType;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use tera::{Context, Tera};

const COMMON: &str = include_str!("common.cl.tera");

/// Name of a parsed template; none that tera would escape for HTML.
const NAME: &str = "kernel.cl";

thread_local! {
    /// Parsed templates by their text: a planner renders each of some dozens for hundreds of problems.
    static PARSED: RefCell<HashMap<String, Tera>> = RefCell::default();
}

/// A tensor as templates see it.
#[derive(Serialize)]
struct TensorMacros {
    name: &'static str,
    dtype: String,
}

/// The values a template is specialized with.
#[derive(Clone, Default)]
pub struct Parameters(Context);

impl Parameters {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a parameter.
    pub fn set<T: Serialize + ?Sized>(mut self, key: &'static str, value: &T) -> Self {
        self.0.insert(key, value);
        self
    }
}

/// Renders `template` behind the load and store macros of `tensors` (`(NAME, storage type)`).
///
/// Errors: a template that names an undefined parameter, with the place.
pub fn render(
    template: &str,
    tensors: &[(&'static str, DType)],
    parameters: &Parameters,
) -> Result<Arc<str>> {
    let mut context = parameters.0.clone();
    let macros: Vec<TensorMacros> = tensors
        .iter()
        .map(|(name, dtype)| TensorMacros { name, dtype: dtype.to_string() })
        .collect();
    context.insert("tensors", &macros);
    let render = |parsed: &mut HashMap<String, Tera>| {
        let tera = match parsed.entry([COMMON, template].concat()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let mut tera = Tera::default();
                tera.add_raw_template(NAME, entry.key())?;
                entry.insert(tera)
            }
        };
        tera.render(NAME, &context)
    };
    let rendered = PARSED.with_borrow_mut(render).context("rendering a kernel template")?;
    Ok(rendered.into())
}
