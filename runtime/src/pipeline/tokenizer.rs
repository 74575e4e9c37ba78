//! CLIP's byte-pair tokenizer: a prompt to the token ids of the text encoder.
//!
//! Owns the vocabulary and the 77-token context. Ids equal open_clip 3.3.0's `tokenize` on any
//! text, including the repair of misread text (`mojibake`) and HTML references (`entities`).

mod bpe;
mod entities;
mod mojibake;
mod split;
mod unicode;

use bpe::Merges;

/// Number of tokens that the text encoder reads.
pub const CONTEXT_LENGTH: usize = 77;
/// Id of the first token of every prompt.
pub const START_ID: u32 = 49_406;
/// Id of the last token of every prompt.
pub const END_ID: u32 = 49_407;

/// Reason why a vocabulary cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The merges are not UTF-8.
    #[error("the tokenizer's merges are not UTF-8 text")]
    NotUtf8(#[from] std::str::Utf8Error),
    /// A line is not two known symbols that make a new one.
    #[error("line {line} of the tokenizer's merges is not a pair of earlier symbols")]
    MalformedMerge {
        /// Number of the line, from 1.
        line: usize,
    },
    /// There are fewer merges than CLIP's vocabulary needs.
    #[error("the tokenizer's merges hold {found} pairs, CLIP's vocabulary needs {expected}")]
    MergeCount {
        /// Pairs found.
        found: usize,
        /// Pairs needed.
        expected: usize,
    },
}

/// The tokens of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids from the start token to the end token, at most [`CONTEXT_LENGTH`].
    pub ids: Vec<u32>,
    /// Whether the prompt was cut to fit.
    pub truncated: bool,
}

impl Encoding {
    /// The ids for the text encoder.
    ///
    /// Shapes: `[77]`. Positions after the end token are 0, as in the training of Stable Diffusion
    /// 2.
    pub fn padded(&self) -> [i32; CONTEXT_LENGTH] {
        let mut padded = [0; CONTEXT_LENGTH];
        for (place, &id) in padded.iter_mut().zip(&self.ids) {
            *place = i32::try_from(id).unwrap_or_default();
        }
        padded
    }
}

/// CLIP's vocabulary, ready to encode prompts. Takes about 0.3 MB.
#[derive(Debug)]
pub struct Tokenizer {
    merges: Merges,
}

impl Tokenizer {
    /// Builds the vocabulary from CLIP's merges (`bpe_simple_vocab_16e6.txt`, or the `merges.txt`
    /// of a checkpoint): a header line, then a pair of symbols a line.
    ///
    /// Errors: [`TokenizerError`] if the text is not UTF-8, if a symbol of a line is unknown to the
    /// lines before it, or if there are fewer than 48,894 pairs. Further lines are ignored.
    pub fn from_merges(merges: &[u8]) -> Result<Self, TokenizerError> {
        Ok(Self { merges: Merges::parse(std::str::from_utf8(merges)?)? })
    }

    /// Encodes a prompt and reports whether it was cut.
    ///
    /// Source: open_clip 3.3.0, `SimpleTokenizer.__call__`.
    pub fn tokenize(&self, text: &str) -> Encoding {
        self.tokenize_parts(std::iter::once(text)).0
    }

    /// Encodes the parts of a prompt one after another, and tells the part of each token: none for
    /// the start and end tokens.
    pub fn tokenize_parts<'a>(
        &self,
        parts: impl Iterator<Item = &'a str>,
    ) -> (Encoding, Vec<Option<usize>>) {
        let (mut ids, mut part_of) = (vec![START_ID], vec![None]);
        for (part, text) in parts.enumerate() {
            let cleaned = split::clean(text);
            for piece in split::pieces(&cleaned) {
                if ids.len() >= CONTEXT_LENGTH {
                    break;
                }
                match piece {
                    split::START_OF_TEXT => ids.push(START_ID),
                    split::END_OF_TEXT => ids.push(END_ID),
                    _ => self.merges.encode_word(piece, &mut ids),
                }
            }
            part_of.resize(ids.len(), Some(part));
        }
        ids.push(END_ID);
        let truncated = ids.len() > CONTEXT_LENGTH;
        if truncated {
            ids.truncate(CONTEXT_LENGTH - 1);
            ids.push(END_ID);
        }
        part_of.truncate(ids.len() - 1);
        part_of.push(None);
        (Encoding { ids, truncated }, part_of)
    }

    /// Token ids of a prompt, from the start token to the end token, at most 77, without padding.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenize(text).ids
    }
}
