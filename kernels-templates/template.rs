//! Renders templates with tera, and reads their heads.
//!
//! A template begins with a comment, its head. Some of its lines are declarations:
//!
//! ```text
//! needs exp, half if run    shared files before it; `half` only if `run` is set and not 0
//! then elementwise          a shared file after it
//! tensors X, OUT = f32: ..  tensors and the default of their storage type; none: absent by default
//! param v = 4: ..           a parameter, its default as tera writes values, its meaning and range
//! ```

use crate::SourceText;
use anyhow::{Context as _, Result, ensure};
use kiln_ir::DType;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::HashMap;
use tera::{Context, Tera};

const COMMON: &str = include_str!("common.cl.tera");

/// Name of a parsed template. With this name, tera does not escape for HTML.
const NAME: &str = "kernel.cl";

thread_local! {
    /// Parsed templates by their text. A planner renders each of some dozens for hundreds of
    /// problems.
    static PARSED: RefCell<HashMap<String, Parsed>> = RefCell::default();
}

macro_rules! shared {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!($name, ".cl.tera")))),*]
    };
}

/// The shared files that heads name, by path.
const SHARED: &[(&str, &str)] = shared![
    "attention/extents",
    "contraction/cpu/tile",
    "contraction/dot/dot_products",
    "contraction/epilogue",
    "contraction/tensor_cores/cut",
    "contraction/vector",
    "contraction/winograd/transform",
    "elementwise",
    "exp",
    "fetch",
    "group_norm/extents",
    "half",
    "ptx",
    "rows",
    "shares",
    "tree",
    "vector",
];

/// A tensor for templates.
#[derive(Serialize)]
struct TensorMacros {
    name: &'static str,
    dtype: String,
}

/// The values for which a template is specialized.
#[derive(Clone, Default)]
pub struct Parameters {
    values: Context,
    names: Vec<&'static str>,
}

impl Parameters {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a parameter.
    pub fn set<T: Serialize + ?Sized>(mut self, key: &'static str, value: &T) -> Self {
        self.values.insert(key, value);
        self.names.push(key);
        self
    }
}

/// The declarations of a file's head.
#[derive(Default)]
pub struct Head<'a> {
    /// Shared files before the template, each with its condition.
    pub needs: Vec<&'a str>,
    /// Shared files after the template.
    pub then: Vec<&'a str>,
    /// Tensors with the default of their storage type.
    pub tensors: Vec<(&'a str, &'a str)>,
    /// Parameters with their defaults, as tera writes values. A template's own head may override
    /// the default of a shared file.
    pub parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Head<'a> {
    /// Reads the head of a file.
    ///
    /// Errors: there is no head; a declaration has no default or no meaning.
    pub fn of(file: &'a str) -> Result<Self> {
        let comment = file.strip_prefix("{#").and_then(|rest| rest.split_once("#}"));
        let (comment, _) = comment.context("a template without a head")?;
        let list = |names: &'a str| names.split(',').map(str::trim);
        let mut head = Head::default();
        let mut rest = comment.trim_end_matches('-');
        while !rest.is_empty() {
            let (line, next) = rest.split_once('\n').unwrap_or((rest, ""));
            match line.trim().split_once(' ').unwrap_or_default() {
                ("needs", names) => head.needs.extend(list(names)),
                ("then", names) => head.then.extend(list(names)),
                ("tensors", _) => {
                    let (names, dtype) = default(rest)?;
                    head.tensors.extend(list(names).map(|name| (name, dtype)));
                }
                ("param", _) => head.parameters.push(default(rest)?),
                _ => {}
            }
            rest = next;
        }
        Ok(head)
    }
}

/// The name and the default of the declaration at the start of `text`. The meaning begins at the
/// first colon outside brackets and strings.
fn default(text: &str) -> Result<(&str, &str)> {
    let (_, declared) = text.trim_start().split_once(' ').unwrap_or_default();
    let (name, value) = declared.split_once(" = ").context("a declaration without default")?;
    let (mut depth, mut quoted) = (0, false);
    let end = value.find(|c| {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            _ => {}
        }
        c == ':' && depth == 0 && !quoted
    });
    Ok((name, &value[..end.with_context(|| format!("{name} has no meaning"))?]))
}

fn shared(name: &str) -> Result<&'static str> {
    let found = SHARED.iter().find(|(known, _)| *known == name);
    Ok(found.with_context(|| format!("no shared file {name}"))?.1)
}

/// A template with the shared files of its head, and the declarations of all their heads.
struct Whole<'a> {
    text: String,
    heads: Vec<Head<'a>>,
}

impl<'a> Whole<'a> {
    fn of(template: &'a str) -> Result<Self> {
        let own = Head::of(template)?;
        let mut text = COMMON.to_string();
        let mut heads = vec![];
        for need in &own.needs {
            let (name, condition) = need.split_once(" if ").unwrap_or((need, ""));
            let file = shared(name)?;
            heads.push(Head::of(file)?);
            match condition {
                "" => text += file,
                _ => text += &format!("{{% if {condition} %}}{file}{{% endif %}}"),
            }
        }
        text += template;
        for name in &own.then {
            heads.push(Head::of(shared(name)?)?);
            text += shared(name)?;
        }
        heads.push(own);
        Ok(Self { text, heads })
    }

    fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.heads.iter().flat_map(|head| head.parameters.iter().copied())
    }

    fn tensors(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.heads.iter().flat_map(|head| head.tensors.iter().copied())
    }
}

/// A template ready to render, with the names that its heads declare.
struct Parsed {
    tera: Tera,
    parameters: Vec<String>,
    tensors: Vec<String>,
}

impl Parsed {
    fn of(template: &str) -> Result<Self> {
        let whole = Whole::of(template)?;
        let parameters = whole.parameters().map(|(name, _)| name.to_string()).collect();
        let tensors = whole.tensors().map(|(name, _)| name.to_string()).collect();
        let mut tera = Tera::default();
        tera.add_raw_template(NAME, &whole.text)?;
        Ok(Self { tera, parameters, tensors })
    }

    fn render(&self, tensors: &[(&'static str, DType)], parameters: &Parameters) -> Result<String> {
        for name in &parameters.names {
            ensure!(
                self.parameters.iter().any(|known| known == name),
                "undeclared parameter {name}"
            );
        }
        for (name, _) in tensors {
            ensure!(self.tensors.iter().any(|known| known == name), "undeclared tensor {name}");
        }
        let macros: Vec<TensorMacros> = tensors
            .iter()
            .map(|(name, dtype)| TensorMacros { name, dtype: dtype.to_string() })
            .collect();
        let mut context = parameters.values.clone();
        context.insert("tensors", &macros);
        Ok(self.tera.render(NAME, &context)?)
    }
}

/// Renders `template` after the load and store macros of `tensors` (`(NAME, storage type)`).
///
/// Errors: a template names an undefined parameter (with its place); no head declares a tensor or a
/// parameter.
pub fn render(
    template: &str,
    tensors: &[(&'static str, DType)],
    parameters: &Parameters,
) -> Result<SourceText> {
    let render = |parsed: &mut HashMap<String, Parsed>| {
        if !parsed.contains_key(template) {
            parsed.insert(template.to_string(), Parsed::of(template)?);
        }
        parsed[template].render(tensors, parameters)
    };
    let rendered = PARSED.with_borrow_mut(render).context("rendering a kernel template")?;
    Ok(rendered.into())
}

/// Renders `template` with the defaults that heads declare.
///
/// Errors: a declaration is missing.
pub fn render_defaults(template: &str) -> Result<SourceText> {
    let whole = Whole::of(template)?;
    let tensors: Vec<String> = whole
        .tensors()
        .filter(|(_, dtype)| *dtype != "none")
        .map(|(name, dtype)| format!(r#"{{ "name": "{name}", "dtype": "{dtype}" }}"#))
        .collect();
    let mut before = format!("{{% set tensors = [{}] -%}}\n", tensors.join(", "));
    for (name, value) in whole.parameters() {
        before += &format!("{{% set {name} = {value} -%}}\n");
    }
    let text = before + &whole.text;
    let rendered = Tera::default().render_str(&text, &Context::new(), false);
    Ok(rendered.context("rendering a kernel template with its defaults")?.into())
}
