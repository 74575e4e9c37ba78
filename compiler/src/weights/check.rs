//! Compares the tensors that graphs read with the tensors of a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Result, bail};

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

/// Compares a checkpoint with the tensors that a graph reads. Further tensors are allowed.
///
/// Errors: one error with a line for each tensor that is missing (with the nearest existing name),
/// has another shape, or has an unreadable type.
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
    let mut report = String::new();
    let mut offender_count = 0;
    for r in required {
        let Some(line) = offence(source, r, &spare) else {
            continue;
        };
        offender_count += 1;
        // Writing to a String cannot fail.
        let _ = write!(report, "\n  {line}");
    }
    if offender_count == 0 {
        return Ok(());
    }
    let path = source.path().display();
    let hint = if missing_count == by_name.len() {
        let found = source.tensors().iter().take(3).map(|t| one_line(&t.name));
        let found = found.collect::<Vec<_>>().join("`, `");
        format!(
            "\n  (none of them is there, is this a Stable Diffusion 2 model? It has `{found}`, ...)"
        )
    } else {
        String::new()
    };
    bail!("{path}: {offender_count} of {} tensors cannot be used:{report}{hint}", required.len())
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
        return Some(format!("{}: type {what} is not read, only F16, BF16, F32, F64", r.name));
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
