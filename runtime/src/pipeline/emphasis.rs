//! Weights of words in a prompt, as AUTOMATIC1111's web UI defines them.
//!
//! | written | weight of its words |
//! |---|---|
//! | `(word)` | times 1.1 |
//! | `(word:1.3)` | times 1.3 |
//! | `[word]` | divided by 1.1 |
//! | `\(`, `\)`, `\[`, `\]`, `\\` | the character itself |
//!
//! Brackets nest. One that is never closed acts to the end.

/// Factor of a pair of brackets without a number.
const FACTOR: f32 = 1.1;

/// A part of a prompt, and the weight of its words.
#[derive(Clone, PartialEq, Debug)]
pub struct Piece {
    /// The text without brackets.
    pub text: String,
    /// The weight; 1 is none.
    pub weight: f32,
}

/// The pieces of a prompt, at least one. Neighbours have different weights.
pub fn pieces(prompt: &str) -> Vec<Piece> {
    let mut reader = Reader { pieces: vec![], round: vec![], square: vec![] };
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let len = reader.read(first, rest);
        rest = &rest[len..];
    }
    let Reader { mut pieces, round, square } = reader;
    for (open, factor) in [(round, FACTOR), (square, 1.0 / FACTOR)] {
        open.into_iter().for_each(|from| weigh(&mut pieces, from, factor));
    }
    let mut merged: Vec<Piece> = vec![];
    for piece in pieces {
        match merged.last_mut() {
            Some(last) if last.weight == piece.weight => last.text += &piece.text,
            _ => merged.push(piece),
        }
    }
    if merged.is_empty() {
        merged.push(Piece { text: String::new(), weight: 1.0 });
    }
    merged
}

/// Multiplies the weights of all pieces from one on.
fn weigh(pieces: &mut [Piece], from: usize, factor: f32) {
    pieces.iter_mut().skip(from).for_each(|piece| piece.weight *= factor);
}

struct Reader {
    pieces: Vec<Piece>,
    /// For each open bracket, the number of pieces before it.
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Reader {
    /// Reads what `rest`, which begins with `first`, begins with. Returns its length in bytes.
    fn read(&mut self, first: char, rest: &str) -> usize {
        let before = self.pieces.len();
        match first {
            // A backslash before anything else is left out.
            '\\' => match rest[1..].chars().next().filter(|next| "\\()[]".contains(*next)) {
                Some(next) => {
                    self.text(&rest[1..1 + next.len_utf8()]);
                    1 + next.len_utf8()
                }
                None => 1,
            },
            '(' => {
                self.round.push(before);
                1
            }
            '[' => {
                self.square.push(before);
                1
            }
            ':' if !self.round.is_empty()
                && let Some((weight, len)) = number_and_bracket(rest) =>
            {
                let from = self.round.pop().unwrap_or(before);
                weigh(&mut self.pieces, from, weight);
                len
            }
            ')' if let Some(from) = self.round.pop() => {
                weigh(&mut self.pieces, from, FACTOR);
                1
            }
            ']' if let Some(from) = self.square.pop() => {
                weigh(&mut self.pieces, from, 1.0 / FACTOR);
                1
            }
            _ => {
                let next = |at: &str| at.find(|c| "\\()[]:".contains(c)).unwrap_or(at.len());
                let len = first.len_utf8() + next(&rest[first.len_utf8()..]);
                self.text(&rest[..len]);
                len
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.pieces.push(Piece { text: text.to_owned(), weight: 1.0 });
    }
}

/// The number of `:1.3)`, and the length of all.
fn number_and_bracket(rest: &str) -> Option<(f32, usize)> {
    let end = rest.find(')')?;
    let text = rest[1..end].trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b == b'.' || b.is_ascii_digit());
    let weight: f32 = text.parse().ok().filter(|_| is_number)?;
    Some((weight, end + 1))
}

/// Weighs the rows of a prompt's embedding, then brings its mean back.
///
/// Shapes: `embedding: [tokens, channels]`, `weights: [tokens]`.
/// Numerics: sums in f64.
/// Source: AUTOMATIC1111's web UI, emphasis "Original".
pub fn apply(embedding: &mut [f32], weights: &[f32]) {
    let channels = (embedding.len() / weights.len().max(1)).max(1);
    let sum = |values: &[f32]| values.iter().map(|value| f64::from(*value)).sum::<f64>();
    let before = sum(embedding);
    for (row, weight) in embedding.chunks_exact_mut(channels).zip(weights) {
        row.iter_mut().for_each(|value| *value *= weight);
    }
    let factor = (before / sum(embedding)) as f32;
    if factor.is_finite() {
        embedding.iter_mut().for_each(|value| *value *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expect(prompt: &str, expected: &[(&str, f32)]) {
        let found = pieces(prompt);
        let texts: Vec<&str> = found.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(texts, expected.iter().map(|(text, _)| *text).collect::<Vec<_>>(), "{prompt}");
        for (piece, (text, weight)) in found.iter().zip(expected) {
            assert!((piece.weight / weight - 1.0).abs() < 1e-6, "{prompt}: {text}: {piece:?}");
        }
    }

    /// The examples of AUTOMATIC1111's documentation.
    #[test]
    fn examples_of_the_web_ui() {
        expect("normal text", &[("normal text", 1.0)]);
        expect("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        expect("(unbalanced", &[("unbalanced", 1.1)]);
        expect("\\(literal\\]", &[("(literal]", 1.0)]);
        expect("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        expect(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn what_is_no_weight_stays_text() {
        expect("", &[("", 1.0)]);
        expect("at 10:30", &[("at 10:30", 1.0)]);
        expect("a:1.3) b]", &[("a:1.3) b]", 1.0)]);
        expect("(a:b)", &[("a:b", 1.1)]);
        expect("(a:1.2.3)", &[("a:1.2.3", 1.1)]);
        expect("(größer: 1.5 )", &[("größer", 1.5)]);
        expect("C:\\dir \\", &[("C:dir ", 1.0)]);
        expect("[a]", &[("a", 1.0 / 1.1)]);
        expect("(a:-1)", &[("a", -1.0)]);
    }

    #[test]
    fn the_mean_stays() {
        let mut embedding = [1.0, 2.0, 3.0, 6.0];
        apply(&mut embedding, &[1.0, 0.5]);
        let factor = 12.0 / 7.5;
        assert_eq!(embedding, [factor, 2.0 * factor, 1.5 * factor, 3.0 * factor]);
        let mut none = [1.0, -1.0];
        apply(&mut none, &[1.0, 1.0]);
        assert_eq!(none, [1.0, -1.0]);
    }
}
