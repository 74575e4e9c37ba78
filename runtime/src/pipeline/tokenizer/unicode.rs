//! Character classes as Python's `str` and `re` define them.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// Whether Python's `str.split()` and `\s` treat the character as white space.
///
/// Unicode's `White_Space` and the four separators U+001C..=U+001F.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Whether the character is a letter (`\p{L}`).
pub(super) fn is_letter(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Letter
}

/// Whether the character is a number (`\p{N}`): a digit, a letter-like number or a fraction.
pub(super) fn is_number(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Number
}

/// Whether the character is a decimal digit of any script (`\d`).
pub(super) fn is_decimal_digit(c: char) -> bool {
    c.general_category() == GeneralCategory::DecimalNumber
}

/// Whether the character is part of a word (`\w`).
pub(super) fn is_word(c: char) -> bool {
    c == '_' || is_letter(c) || is_number(c)
}
