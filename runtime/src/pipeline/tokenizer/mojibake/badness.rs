//! Detects misread text by sequences that are rare in written text and common in misread text.
//!
//! Owns the categories of suspicious characters and the list of suspicious sequences. Knows no
//! repair.
//!
//! Source: the heuristic of `ftfy` 6.3 (`ftfy.badness`).

use crate::pipeline::tokenizer::unicode;

// Categories of the characters in misread UTF-8. A character may be in several.
const COMMON: u16 = 1 << 0;
const C1: u16 = 1 << 1;
const BAD: u16 = 1 << 2;
const LAW: u16 = 1 << 3;
const CURRENCY: u16 = 1 << 4;
const START_PUNCTUATION: u16 = 1 << 5;
const END_PUNCTUATION: u16 = 1 << 6;
const NUMERIC: u16 = 1 << 7;
const KAOMOJI: u16 = 1 << 8;
const UPPER_ACCENTED: u16 = 1 << 9;
const LOWER_ACCENTED: u16 = 1 << 10;
const UPPER_COMMON: u16 = 1 << 11;
const LOWER_COMMON: u16 = 1 << 12;
const BOX: u16 = 1 << 13;

const ACCENTED: u16 = UPPER_ACCENTED | LOWER_ACCENTED;
const PUNCTUATION: u16 = START_PUNCTUATION | END_PUNCTUATION;
/// Categories that are suspicious next to a `BAD` character, on either side.
const NEAR_BAD: u16 = ACCENTED | BOX | PUNCTUATION | CURRENCY | NUMERIC | LAW;

/// Members of each category; `a-z` is a range.
const CATEGORIES: &[(u16, &str)] = &[
    (COMMON, "\u{a0}\u{ad}´·–—―’…"),
    (C1, "\u{80}-\u{9f}"),
    (BAD, "¤¦¨ª¬¯¸ºƒˆˇ˘˛˜†‡‰⌐◊�"),
    (LAW, "§¶"),
    (CURRENCY, "¢£¥₧€"),
    (START_PUNCTUATION, "¡©«¿΄΅‘‚“„•‹\u{f8ff}"),
    (END_PUNCTUATION, "®»˝”›™"),
    (NUMERIC, "±²³µ¹¼½¾×÷⁄№∂∆∏∑√∞∩∫≈≠≡≤≥"),
    (KAOMOJI, "°Ò-ÖÙ-Üò-öø-üŌŐŪŲ"),
    (UPPER_ACCENTED, "À-ÑØÜÝĀĂĄĆČĎĐĒĖĘĚĞĢĪİĶĹĻĽŁŃŅŇŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
    (LOWER_ACCENTED, "ß-ñüāăąćčďđēėęěğģīįķĺļľłœŕśşšťźżžґﬁﬂ"),
    (UPPER_COMMON, "ÞΆΈΉΊΌΎΏΑ-ΫЁ-Я"),
    (LOWER_COMMON, "ά-ωа-џ"),
    (BOX, "│┌┐┘├┤┬┼═-╬▀▄█▌▐-▓"),
];

/// One position in a suspicious sequence.
enum Place {
    /// A character of one of the categories, or one of the listed ones (`a-z` is a range).
    In(u16, &'static str),
    /// Any character except the listed ones.
    NotIn(&'static str),
    /// A letter, digit or underscore.
    Word,
    /// White space.
    Space,
    /// White space or nothing.
    MaybeSpace,
    /// The start of the text.
    Start,
}

use Place::{In, MaybeSpace, NotIn, Space, Start, Word};

/// The suspicious sequences. One occurrence makes a text bad.
const SEQUENCES: &[&[Place]] = &[
    &[In(C1, "")],
    &[In(NEAR_BAD | BAD, ""), In(BAD, "")],
    &[In(0, "a-zA-Z"), In(LOWER_COMMON | UPPER_COMMON, ""), In(BAD, "")],
    &[In(BAD, ""), In(NEAR_BAD, "")],
    &[
        In(LOWER_ACCENTED | LOWER_COMMON | BOX | END_PUNCTUATION | CURRENCY | NUMERIC, ""),
        In(UPPER_ACCENTED, ""),
    ],
    &[In(BOX | END_PUNCTUATION | CURRENCY | NUMERIC, ""), In(LOWER_ACCENTED, "")],
    &[In(LOWER_ACCENTED | BOX | END_PUNCTUATION, ""), In(CURRENCY, "")],
    &[Space, In(UPPER_ACCENTED, ""), In(CURRENCY, "")],
    &[In(UPPER_ACCENTED | BOX, ""), In(NUMERIC | LAW, "")],
    &[
        In(ACCENTED | BOX | CURRENCY | END_PUNCTUATION, ""),
        In(START_PUNCTUATION, ""),
        In(NUMERIC, ""),
    ],
    &[
        In(ACCENTED | CURRENCY | NUMERIC | BOX | LAW, ""),
        In(END_PUNCTUATION, ""),
        In(START_PUNCTUATION, ""),
    ],
    &[In(CURRENCY | NUMERIC | BOX, ""), In(START_PUNCTUATION, "")],
    &[In(0, "a-z"), In(UPPER_ACCENTED, ""), In(START_PUNCTUATION | CURRENCY, "")],
    &[In(BOX, ""), In(KAOMOJI, "")],
    &[In(ACCENTED | CURRENCY | NUMERIC | PUNCTUATION | LAW, ""), In(BOX, "")],
    &[In(BOX, ""), In(END_PUNCTUATION, "")],
    &[In(ACCENTED, ""), In(PUNCTUATION, ""), Word],
    // The ligature œ before anything except an unaccented letter.
    &[In(0, "Œœ"), NotIn("A-Za-z")],
    &[In(UPPER_ACCENTED, ""), In(0, "°")],
    // Windows-1252 readings of two-byte sequences, and of Arabic words.
    &[In(0, "ÂÃÎÐ"), In(PUNCTUATION, "€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»–—´")],
    &[In(0, "×"), In(0, "²³")],
    &[In(0, "ØÙ"), In(ARABIC_TAIL, "ŸŠ®°µ»"), In(0, "ØÙ"), In(ARABIC_TAIL, "ŸŠ®°µ»")],
    // Windows-1252 readings of South Asian alphabets.
    &[In(0, "à"), In(0, "²µ¹¼½¾")],
    // Mac OS Roman readings.
    &[In(0, "√"), In(0, "±∂†≠®™´≤≥¥µø")],
    &[In(0, "≈"), In(0, "°¢")],
    &[In(0, "‚"), In(0, "Ä"), In(0, "ìîïòôúùû†°¢π")],
    &[In(0, "‚"), In(0, "âó"), In(0, "àä°ê")],
    // Windows-1251 readings of punctuation, of Cyrillic, and of text misread twice.
    &[In(0, "в"), In(0, "Ђ")],
    &[In(0, "ВГРС"), In(C1 | BAD | PUNCTUATION | CURRENCY, "°µ"), In(0, "ВГРС")],
    &[In(0, "Г"), In(0, "ў"), In(0, "В"), In(0, "Ђ"), In(0, "В"), NotIn("\n"), In(0, "A-Za-z ")],
    // Windows-1252 readings of à, á and of the no-break space.
    &[In(0, "Ã"), In(0, "\u{a0}¡")],
    &[In(0, "a-z"), MaybeSpace, In(0, "ÃÂ"), In(0, " ")],
    &[Start, In(0, "ÃÂ"), In(0, " ")],
    &[In(END_PUNCTUATION, "a-z.,?!"), In(0, "Â"), In(PUNCTUATION, " ")],
    // Windows-1253 readings of punctuation and of Greek.
    &[In(0, "β"), In(0, "€"), In(0, "™\u{a0}Ά\u{ad}®°")],
    &[In(0, "ΒΓΞΟ"), In(C1 | BAD | PUNCTUATION | CURRENCY, "°"), In(0, "ΒΓΞΟ")],
    // Windows-1257 readings of punctuation.
    &[In(0, "ā"), In(0, "€")],
];

const ARABIC_TAIL: u16 = COMMON | CURRENCY | BAD | NUMERIC | START_PUNCTUATION;

/// Whether the text contains a suspicious sequence.
pub(super) fn is_bad(text: &str) -> bool {
    if text.is_ascii() {
        return false;
    }
    let chars: Vec<(char, u16)> = text.chars().map(|c| (c, categories_of(c))).collect();
    (0..chars.len()).any(|at| SEQUENCES.iter().any(|sequence| matches_at(&chars, at, sequence)))
}

fn matches_at(chars: &[(char, u16)], at: usize, sequence: &[Place]) -> bool {
    let Some((place, later)) = sequence.split_first() else {
        return true;
    };
    let next = chars.get(at).copied();
    let matched = match place {
        Start => return at == 0 && matches_at(chars, at, later),
        MaybeSpace if matches_at(chars, at, later) => return true,
        MaybeSpace | Space => next.is_some_and(|(c, _)| unicode::is_python_space(c)),
        In(categories, members) => {
            next.is_some_and(|(c, found)| found & categories != 0 || is_member(members, c))
        }
        NotIn(members) => next.is_some_and(|(c, _)| !is_member(members, c)),
        Word => next.is_some_and(|(c, _)| unicode::is_word(c)),
    };
    matched && matches_at(chars, at + 1, later)
}

fn categories_of(c: char) -> u16 {
    if c.is_ascii() {
        return 0;
    }
    CATEGORIES
        .iter()
        .filter(|(_, members)| is_member(members, c))
        .fold(0, |all, (category, _)| all | category)
}

/// Whether a list of characters and `a-z` ranges contains `c`.
fn is_member(members: &str, c: char) -> bool {
    let mut rest = members.chars();
    while let Some(first) = rest.next() {
        let mut ahead = rest.clone();
        let last = match (ahead.next(), ahead.next()) {
            (Some('-'), Some(last)) => {
                rest = ahead;
                last
            }
            _ => first,
        };
        if (first..=last).contains(&c) {
            return true;
        }
    }
    false
}
