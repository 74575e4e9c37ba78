//! The problem as text: `id,lower,upper,size[,alignment]`, and the solution with `,offset` added.
//!
//! Strict: the header is exactly one of the two, every line has as many fields as the header, and a
//! number is decimal digits only. There is no quoting, so an id has no comma.

use std::collections::HashMap;
use std::fmt::Write;

use thiserror::Error;

use super::{ArenaProblem, Buffer, ProblemError, Solution};

const HEADER: &str = "id,lower,upper,size";
const HEADER_ALIGNED: &str = "id,lower,upper,size,alignment";

/// A problem whose buffers have names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The name of each buffer of `problem`, all different.
    pub ids: Vec<String>,
    /// The problem, without a capacity: the text has none.
    pub problem: ArenaProblem,
    /// Whether the text has a column of alignments.
    pub aligned: bool,
}

/// A fault of a text, with its line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {kind}")]
pub struct CsvError {
    /// The line, counted from 1.
    pub line: usize,
    /// The fault.
    pub kind: CsvErrorKind,
}

/// A rule that a line breaks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CsvErrorKind {
    /// The first line must be one of the two headers.
    #[error("the header must be `{HEADER}` or `{HEADER_ALIGNED}`")]
    Header,
    /// A line must have one field for each column.
    #[error("{found} fields where the header names {expected}")]
    Fields {
        /// Number of columns of the header.
        expected: usize,
        /// Number of fields of the line.
        found: usize,
    },
    /// An id must not be empty.
    #[error("the id is empty")]
    EmptyId,
    /// No two lines may have the same id.
    #[error("the id `{id}` is taken by line {first_line}")]
    DuplicateId {
        /// The id.
        id: String,
        /// The earlier line with this id.
        first_line: usize,
    },
    /// A field must be decimal digits and fit its column: 32 bits for times, 64 for bytes.
    #[error("`{text}` is no {column}: decimal digits that fit are needed")]
    Number {
        /// The column's name.
        column: &'static str,
        /// The field.
        text: String,
    },
    /// The line's buffer breaks a rule of problems.
    #[error("{}", rule_of_line(.0))]
    Buffer(ProblemError),
}

/// The rule without indices. The line number identifies the buffer.
fn rule_of_line(error: &ProblemError) -> String {
    match error {
        ProblemError::EmptyLifespan { .. } => "lower is not below upper".to_string(),
        ProblemError::EmptyBuffer { .. } => "the size is 0".to_string(),
        ProblemError::ZeroAlignment { .. } => "the alignment is 0".to_string(),
        error => error.to_string(),
    }
}

/// Reads a problem.
///
/// Errors: the first [`CsvError`]. The returned problem passes [`ArenaProblem::validate`].
pub fn parse_csv(text: &str) -> Result<Table, CsvError> {
    let mut lines = text.lines().zip(1usize..);
    let aligned = match lines.next() {
        Some((HEADER, _)) => false,
        Some((HEADER_ALIGNED, _)) => true,
        _ => {
            return Err(CsvError { line: 1, kind: CsvErrorKind::Header });
        }
    };
    let mut table = Table { ids: Vec::new(), problem: ArenaProblem::default(), aligned };
    let mut line_of_id: HashMap<&str, usize> = HashMap::new();
    for (text, line) in lines {
        let index = table.ids.len();
        let (id, buffer) =
            parse_line(text, aligned, index).map_err(|kind| CsvError { line, kind })?;
        if let Some(first_line) = line_of_id.insert(id, line) {
            let kind = CsvErrorKind::DuplicateId { id: id.to_owned(), first_line };
            return Err(CsvError { line, kind });
        }
        table.ids.push(id.to_owned());
        table.problem.buffers.push(buffer);
    }
    let line = table.ids.len() + 1;
    let sums = table.problem.validate();
    sums.map_err(|error| CsvError { line, kind: CsvErrorKind::Buffer(error) })?;
    Ok(table)
}

fn parse_line(text: &str, aligned: bool, index: usize) -> Result<(&str, Buffer), CsvErrorKind> {
    let fields: Vec<&str> = text.split(',').collect();
    let (id, lower, upper, size, alignment) = match (fields[..].first_chunk(), fields.get(4)) {
        (Some(&[id, lower, upper, size]), None) if !aligned => (id, lower, upper, size, "1"),
        (Some(&[id, lower, upper, size]), Some(&alignment)) if aligned && fields.len() == 5 => {
            (id, lower, upper, size, alignment)
        }
        _ => {
            let expected = if aligned { 5 } else { 4 };
            return Err(CsvErrorKind::Fields { expected, found: fields.len() });
        }
    };
    if id.is_empty() {
        return Err(CsvErrorKind::EmptyId);
    }
    let buffer = Buffer::new(
        number("lower", lower)?,
        number("upper", upper)?,
        number("size", size)?,
        number("alignment", alignment)?,
    );
    buffer.validate(index).map_err(CsvErrorKind::Buffer)?;
    Ok((id, buffer))
}

fn number<T: std::str::FromStr>(column: &'static str, text: &str) -> Result<T, CsvErrorKind> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let parsed = if digits { text.parse().ok() } else { None };
    parsed.ok_or_else(|| CsvErrorKind::Number { column, text: text.to_owned() })
}

/// Writes a problem and its solution: the lines that were read, each with its offset.
///
/// Requires one id and one offset for each buffer.
pub fn write_csv(table: &Table, solution: &Solution) -> String {
    let mut text = String::from(if table.aligned { HEADER_ALIGNED } else { HEADER });
    text.push_str(",offset\n");
    let rows = table.ids.iter().zip(&table.problem.buffers).zip(&solution.offsets);
    for ((id, b), offset) in rows {
        let mut row = format!("{id},{},{},{}", b.lower, b.upper, b.size_bytes);
        if table.aligned {
            let _ = write!(row, ",{}", b.align_bytes);
        }
        let _ = writeln!(text, "{row},{offset}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written() {
        let table = parse_csv("id,lower,upper,size\na,0,2,8\nb 2,1,3,16\n").unwrap();
        assert_eq!(table.ids, ["a", "b 2"]);
        assert_eq!(table.problem.buffers[1], Buffer::new(1, 3, 16, 1));
        let solution = Solution { offsets: vec![16, 0], height_bytes: 24 };
        let expected = "id,lower,upper,size,offset\na,0,2,8,16\nb 2,1,3,16,0\n";
        assert_eq!(write_csv(&table, &solution), expected);

        let table = parse_csv("id,lower,upper,size,alignment\r\na,0,2,8,4\r\n").unwrap();
        assert_eq!(table.problem.buffers, [Buffer::new(0, 2, 8, 4)]);
        let solution = Solution { offsets: vec![4], height_bytes: 12 };
        let expected = "id,lower,upper,size,alignment,offset\na,0,2,8,4,4\n";
        assert_eq!(write_csv(&table, &solution), expected);
        assert_eq!(parse_csv(HEADER).unwrap().ids.len(), 0);
    }

    #[track_caller]
    fn assert_error(text: &str, expected: &str) {
        assert_eq!(parse_csv(text).unwrap_err().to_string(), expected, "{text:?}");
    }

    #[test]
    fn the_header_is_one_of_two() {
        let expected = "line 1: the header must be `id,lower,upper,size` or \
                        `id,lower,upper,size,alignment`";
        for text in ["", "a,0,2,8", "id,lower,upper", "id,lower,upper,size,offset\n"] {
            assert_error(text, expected);
        }
    }

    #[test]
    fn errors_are_one_line_and_name_theirs() {
        let cases = [
            ("a,0,2,8\n\n", "line 3: 1 fields where the header names 4"),
            ("a,0,2,8,1", "line 2: 5 fields where the header names 4"),
            (",0,2,8", "line 2: the id is empty"),
            ("a,0,2,8\na,0,2,8", "line 3: the id `a` is taken by line 2"),
            ("a,2,2,8", "line 2: lower is not below upper"),
            ("a,0,2,0", "line 2: the size is 0"),
        ];
        for (rows, expected) in cases {
            assert_error(&format!("{HEADER}\n{rows}"), expected);
        }
        let cases = [
            ("a,0,2,8", "line 2: 4 fields where the header names 5"),
            ("a,0,2,8,1,1", "line 2: 6 fields where the header names 5"),
            ("a,0,2,8,0", "line 2: the alignment is 0"),
        ];
        for (rows, expected) in cases {
            assert_error(&format!("{HEADER_ALIGNED}\n{rows}"), expected);
        }
        let too_large = format!("{HEADER}\na,0,2,{}", u64::MAX);
        assert_error(&too_large, "line 2: the sizes add up to more than 63 bits hold");
    }

    #[test]
    fn numbers_are_digits_that_fit() {
        for (rows, field, column) in [
            ("a,0,+2,8", "+2", "upper"),
            ("a,0, 2,8", " 2", "upper"),
            ("a,,2,8", "", "lower"),
            ("a,4294967296,2,8", "4294967296", "lower"),
            ("a,0,2,1e3", "1e3", "size"),
        ] {
            let rule = "decimal digits that fit are needed";
            let expected = format!("line 2: `{field}` is no {column}: {rule}");
            assert_error(&format!("{HEADER}\n{rows}"), &expected);
        }
    }
}
