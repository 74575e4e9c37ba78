//! Compares the tensors that graphs read with the tensors of a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, anyhow};

use super::family::recognize;
use super::{StoredType, TensorSource, one_line};

/// Number of missing names for which a close match is searched. A checkpoint in another layout
/// lacks hundreds, and guesses would not help.
const MAX_GUESSES: usize = 16;

/// A tensor that a graph reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Key in the single-file layout.
    pub name: String,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
}

/// Number of offenders that a message lists.
const LISTED: usize = 10;

/// A checkpoint that lacks tensors of a model. The message begins with the checkpoint's kind and
/// lists some of the offenders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    path: PathBuf,
    kind: Option<&'static str>,
    /// Names of some tensors, if the checkpoint has none of the required ones.
    instead: Vec<String>,
    offenders: Vec<String>,
    required_count: usize,
}

impl Mismatch {
    /// The message with every offender.
    pub fn full(&self) -> String {
        self.message(usize::MAX)
    }

    fn message(&self, listed: usize) -> String {
        let mut text = format!("{}: ", self.path.display());
        if let Some(kind) = self.kind {
            text += &format!("this is {kind}; ");
        }
        let (count, required) = (self.offenders.len(), self.required_count);
        text += &format!("{count} of {required} tensors of the model cannot be used");
        if !self.instead.is_empty() {
            text += &format!(", and none is there, but `{}`, ...", self.instead.join("`, `"));
        }
        for offender in self.offenders.iter().take(listed) {
            text += &format!("\n  {offender}");
        }
        if count > listed {
            text += &format!("\n  and {} more; --verbose lists them", count - listed);
        }
        text
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message(LISTED))
    }
}

impl Error for Mismatch {}

/// Compares a checkpoint with the tensors that a graph reads. Further tensors are allowed.
///
/// Errors: [`Mismatch`], with each tensor that is missing (and the nearest existing name), has
/// another shape, or has an unreadable type.
pub fn check(source: &dyn TensorSource, required: &[Requirement]) -> Result<()> {
    let by_name: BTreeMap<&str, &Requirement> =
        required.iter().map(|r| (r.name.as_str(), r)).collect();
    let is_missing = |name: &&str| source.info(name).is_none();
    let missing_count = by_name.keys().filter(|name| is_missing(name)).count();
    let guess = (1..=MAX_GUESSES).contains(&missing_count);
    let spare: BTreeSet<&str> = source
        .tensors()
        .iter()
        .map(|t| t.name.as_str())
        .filter(|name| guess && !by_name.contains_key(name))
        .collect();
    let offenders: Vec<String> =
        required.iter().filter_map(|r| offence(source, r, &spare)).collect();
    if offenders.is_empty() {
        return Ok(());
    }
    let names = source.tensors().iter().map(|t| one_line(&t.name));
    let shown = if missing_count == by_name.len() { 3 } else { 0 };
    Err(anyhow!(Mismatch {
        path: source.path().to_owned(),
        kind: recognize(source, required),
        instead: names.take(shown).collect(),
        offenders,
        required_count: required.len(),
    }))
}

/// The fault of one requirement, if any.
fn offence(source: &dyn TensorSource, r: &Requirement, spare: &BTreeSet<&str>) -> Option<String> {
    let Some(info) = source.info(&r.name) else {
        let near = nearest(&r.name, spare)
            .map(|name| format!(" (there is `{}`)", one_line(name)))
            .unwrap_or_default();
        return Some(format!("{}: missing{near}", r.name));
    };
    if info.shape != r.shape {
        return Some(format!("{}: shape {:?} expected, {:?} found", r.name, r.shape, info.shape));
    }
    if let StoredType::Unsupported(what) = &info.dtype {
        return Some(format!("{}: type {what} is not read, only F8, F16, BF16, F32, F64", r.name));
    }
    None
}

/// The unused name with the least edit distance, if it is close enough to be a variant spelling.
fn nearest<'a>(name: &str, spare: &BTreeSet<&'a str>) -> Option<&'a str> {
    let limit = (name.len() / 4).max(2);
    spare
        .iter()
        .filter(|s| s.len().abs_diff(name.len()) <= limit && s.len() <= 4 * name.len())
        .map(|s| (edit_distance(name.as_bytes(), s.as_bytes()), *s))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, s)| s)
}

/// Levenshtein distance, one row at a time.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::edit_distance;

    #[test]
    fn edit_distances() {
        assert_eq!(edit_distance(b"", b"abc"), 3);
        assert_eq!(edit_distance(b"kitten", b"sitting"), 3);
        assert_eq!(edit_distance(b"same", b"same"), 0);
    }
}
