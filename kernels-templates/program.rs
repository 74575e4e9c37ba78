//! Sources that can stand in one program beside others.
//!
//! Every template defines macros, functions and types under the same few names. In a program of
//! several kernels each source therefore keeps its names to itself: functions and types get a
//! suffix, by macros in front of the source, and all macros end with it.

use std::fmt::Write as _;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

/// A source for a program of several, and its kernel's name there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// OpenCL C. Its names hide those of no other part.
    pub source: Arc<str>,
    /// The entry point with the source's suffix.
    pub entry: String,
}

/// Makes a part of a source. Equal sources make equal parts.
pub fn part(source: &str, entry: &str) -> Part {
    let mut names = Names::of(source);
    let suffix = suffix(source);
    let mut text = String::with_capacity(source.len() + 1024);
    for name in &names.defined {
        let _ = writeln!(text, "#define {name} {name}_{suffix}");
    }
    text += source;
    names.macros.sort_unstable();
    names.macros.dedup();
    for name in names.defined.iter().chain(&names.macros) {
        let _ = writeln!(text, "#undef {name}");
    }
    Part { source: text.into(), entry: format!("{entry}_{suffix}") }
}

/// The name of a source's kernel in a program of several: that of [`part`].
pub fn name(source: &str, entry: &str) -> String {
    format!("{entry}_{}", suffix(source))
}

/// Tells sources apart: six hexadecimal digits of a hash.
fn suffix(source: &str) -> String {
    format!("{:06x}", xxh3_64(source.as_bytes()) >> 40)
}

/// What a source defines outside of functions.
#[derive(Default)]
struct Names<'a> {
    macros: Vec<&'a str>,
    /// Functions and types.
    defined: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn of(source: &'a str) -> Self {
        let mut names = Self::default();
        // Position behind the last declaration, and depth of braces.
        let (mut declared, mut depth, mut at) = (0, 0, 0);
        while let Some(byte) = source.as_bytes().get(at) {
            let (before, rest) = (&source[declared..at], &source[at..]);
            let skipped = match byte {
                b'#' if source[..at].ends_with('\n') || at == 0 => names.directive(rest),
                b'/' => comment(rest),
                _ => 0,
            };
            if skipped > 0 {
                at += skipped;
                declared = if before.trim().is_empty() { at } else { declared };
                continue;
            }
            let ends = match byte {
                b'{' => {
                    names.defined.extend((depth == 0).then(|| function(before)).flatten());
                    depth += 1;
                    false
                }
                b'}' => {
                    depth -= 1;
                    depth == 0
                }
                b';' => {
                    names.defined.extend((depth == 0).then(|| ty(before)).flatten());
                    depth == 0
                }
                _ => false,
            };
            at += 1;
            declared = if ends { at } else { declared };
        }
        names
    }

    /// Reads a directive with its continued lines, and returns its length.
    fn directive(&mut self, text: &'a str) -> usize {
        let name = text.strip_prefix("#define ").map(str::trim_start);
        self.macros.extend(name.map(|rest| &rest[..identifier(rest)]));
        let mut end = 0;
        for line in text.split_inclusive('\n') {
            end += line.len();
            if !line.trim_end().ends_with('\\') {
                break;
            }
        }
        end
    }
}

/// Length of the comment that the text begins with, or 0.
fn comment(text: &str) -> usize {
    let end = match text.as_bytes().get(1) {
        Some(b'*') => text.find("*/").map(|end| end + 2),
        Some(b'/') => text.find('\n'),
        _ => return 0,
    };
    end.unwrap_or(text.len())
}

/// Length of the identifier that the text begins with.
fn identifier(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// The last identifier of a text.
fn last_identifier(text: &str) -> Option<&str> {
    let text = text.trim_end();
    let start = text.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |at| at + 1);
    Some(&text[start..]).filter(|name| !name.is_empty())
}

const ATTRIBUTE: &str = "__attribute__";

/// The name of the function that is defined by a text before its body.
fn function(text: &str) -> Option<&str> {
    let mut text = text;
    while let Some(at) = text.find(ATTRIBUTE) {
        text = &text[at + ATTRIBUTE.len()..];
        text = &text[text.find("))")? + 2..];
        text = text.trim_start_matches(')');
    }
    last_identifier(&text[..text.find('(')?])
}

/// The name of the type that a text defines.
fn ty(text: &str) -> Option<&str> {
    let text = text.trim_start().strip_prefix("typedef ")?;
    last_identifier(text.split(ATTRIBUTE).next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_keeps_its_names_to_itself() {
        let source = "#define A(x) { x; \\\n}\n/* weight(W) { */\n#if 1\n#define B 1\n#endif\n\
            typedef float wide __attribute__((__vector_size__(64)));\n\
            float weight(const int i) { if (i) { return 1; } return A(i); }\n\
            #define A(x) x\n\
            __kernel __attribute__((reqd_work_group_size(1, 1, 1)))\nvoid add() { weight(2); }\n";
        let part = part(source, "add");
        let suffix = part.entry.strip_prefix("add_").unwrap();
        assert_eq!(suffix.len(), 6);
        assert_eq!(name(source, "add"), part.entry);
        let before = ["wide", "weight", "add"].map(|n| format!("#define {n} {n}_{suffix}\n"));
        let after = ["wide", "weight", "add", "A", "B"].map(|n| format!("#undef {n}\n"));
        assert_eq!(*part.source, format!("{}{source}{}", before.concat(), after.concat()));
        assert_ne!(super::part("void add() {}", "add").entry, part.entry);
    }
}
