//! Byte-pair encoding over token ids.
//!
//! Owns the merge table. Knows no text beyond UTF-8 bytes.
//!
//! Source: Sennrich et al. 2016 (arXiv:1508.07909); vocabulary order as in OpenAI's CLIP.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::TokenizerError;

/// Merges in CLIP's vocabulary of 49,408 tokens: all tokens except 2 x 256 bytes and two markers.
pub(super) const MERGE_COUNT: usize = 49_152 - 256 - 2;
/// Id of the first merged token.
const FIRST_MERGED_ID: u32 = 512;
/// Difference between the id of a byte at the end of a word and its id elsewhere.
const END_OF_WORD: u32 = 256;
const END_OF_WORD_SUFFIX: &str = "</w>";

/// The merge table.
#[derive(Debug)]
pub(super) struct Merges {
    /// Id of the token for each byte.
    byte_ids: [u32; 256],
    /// `(left id, right id, merged id)`, sorted. A lower merged id is an earlier, preferred merge.
    merges: Vec<(u16, u16, u16)>,
}

impl Merges {
    /// Reads CLIP's merges: one header line, then a pair of symbols a line, best first.
    pub(super) fn parse(text: &str) -> Result<Self, TokenizerError> {
        let symbols = byte_symbols();
        let mut byte_ids = [0; 256];
        let mut ids: HashMap<String, u32> =
            HashMap::with_capacity(FIRST_MERGED_ID as usize + MERGE_COUNT);
        for (id, (byte, symbol)) in (0..).zip(&symbols) {
            byte_ids[usize::from(*byte)] = id;
            ids.insert(symbol.to_string(), id);
            ids.insert(format!("{symbol}{END_OF_WORD_SUFFIX}"), id + END_OF_WORD);
        }
        let mut merges = Vec::with_capacity(MERGE_COUNT);
        for (index, line) in text.lines().skip(1).take(MERGE_COUNT).enumerate() {
            let malformed = || TokenizerError::MalformedMerge { line: index + 2 };
            let (left, right) = line.split_once(' ').ok_or_else(malformed)?;
            let id_of = |symbol: &str| ids.get(symbol).copied().ok_or_else(malformed);
            let merged = FIRST_MERGED_ID + u32::try_from(index).map_err(|_| malformed())?;
            merges.push((narrow(id_of(left)?)?, narrow(id_of(right)?)?, narrow(merged)?));
            if ids.insert(format!("{left}{right}"), merged).is_some() {
                return Err(malformed());
            }
        }
        if merges.len() != MERGE_COUNT {
            return Err(TokenizerError::MergeCount { found: merges.len(), expected: MERGE_COUNT });
        }
        merges.sort_unstable();
        Ok(Self { byte_ids, merges })
    }

    fn merged(&self, left: u32, right: u32) -> Option<u32> {
        let pair = (u16::try_from(left).ok()?, u16::try_from(right).ok()?);
        let at = self.merges.binary_search_by_key(&pair, |&(l, r, _)| (l, r)).ok()?;
        self.merges.get(at).map(|&(_, _, merged)| u32::from(merged))
    }

    /// Appends the ids of one word.
    ///
    /// Merges the best pair first, and the leftmost of equal pairs. A merged token takes part in
    /// later, worse merges only, so this equals merging all occurrences of the best pair at once.
    pub(super) fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        let mut tokens: Vec<u32> =
            word.bytes().map(|byte| self.byte_ids[usize::from(byte)]).collect();
        let count = tokens.len();
        if let Some(last) = tokens.last_mut() {
            *last += END_OF_WORD;
        }
        // Neighbours of each remaining token. `count` is past the end.
        let mut next: Vec<usize> = (1..=count).collect();
        let mut previous: Vec<Option<usize>> = (0..count).map(|at| at.checked_sub(1)).collect();
        let mut alive = vec![true; count];
        let candidate = |tokens: &[u32], left: usize, right: usize| {
            let right_token = *tokens.get(right)?;
            let merged = self.merged(tokens[left], right_token)?;
            Some(Reverse((merged, left, tokens[left], right_token)))
        };
        let mut queue: BinaryHeap<_> =
            (0..count).filter_map(|left| candidate(&tokens, left, left + 1)).collect();
        while let Some(Reverse((merged, left, left_token, right_token))) = queue.pop() {
            let right = next[left];
            let current = alive[left] && tokens[left] == left_token;
            if !current || tokens.get(right) != Some(&right_token) {
                continue;
            }
            tokens[left] = merged;
            alive[right] = false;
            next[left] = next[right];
            if let Some(before) = previous.get_mut(next[right]) {
                *before = Some(left);
            }
            queue.extend(previous[left].and_then(|before| candidate(&tokens, before, left)));
            queue.extend(candidate(&tokens, left, next[left]));
        }
        ids.extend(tokens.iter().zip(&alive).filter(|(_, alive)| **alive).map(|(token, _)| *token));
    }
}

fn narrow(id: u32) -> Result<u16, TokenizerError> {
    // The vocabulary has fewer than 2^16 tokens.
    u16::try_from(id)
        .map_err(|_| TokenizerError::MergeCount { found: id as usize, expected: MERGE_COUNT })
}

/// The printable character for each byte in the merges, in the order of token ids.
fn byte_symbols() -> Vec<(u8, char)> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let as_is = (0..=255).filter(|&byte| printable(byte)).map(|byte| (byte, char::from(byte)));
    let shifted = (0..=255).filter(|&byte| !printable(byte)).zip('\u{100}'..);
    as_is.chain(shifted).collect()
}
