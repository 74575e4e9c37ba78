//! HTML character references, decoded like Python and `ftfy` do.
//!
//! Source: Python's `html.unescape` (the HTML 5 rules), and `ftfy.fixes.unescape_html`.

use std::borrow::Cow;

/// Longest name of an entity without a semicolon, in characters.
const MAX_NAME_CHARS: usize = 32;
/// Longest reference of the strict form, in characters between `&` or `&#` and `;`.
const MAX_STRICT_CHARS: usize = 24;

/// The text of a named entity. The name has no `&`, and ends in a semicolon if the entity has one.
fn named(name: &str) -> Option<&'static str> {
    let text = htmlize::ENTITIES.get(format!("&{name}").as_bytes())?;
    std::str::from_utf8(text).ok()
}

/// Decodes every reference by the rules of HTML 5: the semicolon may be missing, and the longest
/// known prefix of an unknown name counts. Equals Python's `html.unescape`.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    replace_references(text, |reference| {
        numeric(reference).or_else(|| {
            let name = name_prefix(reference)?;
            let (known, value) = longest_entity(name)?;
            Some((value.to_owned(), known.len()))
        })
    })
}

/// Decodes only unambiguous references: with a semicolon, including letters and common symbols
/// named in capitals. Equals `ftfy.fixes.unescape_html`.
pub(super) fn unescape_strict(text: &str) -> Cow<'_, str> {
    replace_references(text, |reference| {
        let body = reference.strip_prefix('#').unwrap_or(reference);
        let length = body.bytes().take_while(u8::is_ascii_alphanumeric).count();
        if !(1..=MAX_STRICT_CHARS).contains(&length) || body.as_bytes().get(length) != Some(&b';') {
            return None;
        }
        let reference = &reference[..reference.len() - body.len() + length + 1];
        let value = if reference.starts_with('#') {
            let (value, used) = numeric(reference)?;
            // A reference that ends early, or decodes to a semicolon, is kept.
            (used == reference.len() && value != ";").then_some(value)
        } else {
            named(reference).map(str::to_owned).or_else(|| capitals(reference))
        };
        value.map(|value| (value, reference.len()))
    })
}

/// Calls `decode` with the text after each `&`. It returns the replacement and the bytes used.
fn replace_references<'t>(
    text: &'t str,
    decode: impl Fn(&str) -> Option<(String, usize)>,
) -> Cow<'t, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, reference)) = rest.split_once('&') {
        decoded.push_str(before);
        match decode(reference) {
            Some((value, used)) => {
                decoded.push_str(&value);
                rest = &reference[used..];
            }
            None => {
                decoded.push('&');
                rest = reference;
            }
        }
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

/// Decodes `#123;` or `#x7b;`, semicolon optional. Returns the value and the bytes used.
fn numeric(reference: &str) -> Option<(String, usize)> {
    let body = reference.strip_prefix('#')?;
    let (digits, radix) = match body.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (body, 10),
    };
    let length = digits.bytes().take_while(|&byte| char::from(byte).is_digit(radix)).count();
    if length == 0 {
        return None;
    }
    let code = digits[..length].chars().filter_map(|digit| digit.to_digit(radix));
    let code = code.fold(0u32, |code, digit| code.saturating_mul(radix).saturating_add(digit));
    let semicolon = usize::from(digits.as_bytes().get(length) == Some(&b';'));
    let used = reference.len() - digits.len() + length + semicolon;
    Some((charref(code), used))
}

/// The text of a numeric reference: Windows-1252 for C1 controls, nothing for other controls and
/// noncharacters, U+FFFD for numbers that are no character.
fn charref(code: u32) -> String {
    const WINDOWS_1252_C1: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ";
    match code {
        0 => "\u{fffd}".to_owned(),
        0x80..=0x9f => WINDOWS_1252_C1.chars().skip(code as usize - 0x80).take(1).collect(),
        0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        _ => match char::from_u32(code) {
            Some(_) if code & 0xfffe == 0xfffe => String::new(),
            Some(c) => c.to_string(),
            None => "\u{fffd}".to_owned(),
        },
    }
}

/// The characters after `&` that may form a name, with the semicolon at their end.
fn name_prefix(reference: &str) -> Option<&str> {
    let is_stop = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let end = reference
        .char_indices()
        .enumerate()
        .find(|&(count, (_, c))| count == MAX_NAME_CHARS || is_stop(c))
        .map_or(reference.len(), |(_, (at, _))| at);
    let semicolon = usize::from(reference[end..].starts_with(';'));
    (end > 0).then(|| &reference[..end + semicolon])
}

/// The longest entity that `name` starts with. Entities of one character count only if they are the
/// whole name.
fn longest_entity(name: &str) -> Option<(&str, &'static str)> {
    let ends = name.char_indices().map(|(at, _)| at).skip(2).chain([name.len()]);
    let ends: Vec<usize> = ends.collect();
    ends.into_iter().rev().find_map(|end| named(&name[..end]).map(|value| (&name[..end], value)))
}

/// Decodes `EACUTE;` as É: the entity in small letters, raised, unless HTML knows the name in
/// capitals.
fn capitals(reference: &str) -> Option<String> {
    if reference.bytes().any(|byte| byte.is_ascii_lowercase())
        || longest_entity(reference).is_some()
    {
        return None;
    }
    named(&reference.to_ascii_lowercase()).map(str::to_uppercase)
}

#[cfg(test)]
mod tests {
    use super::{unescape, unescape_strict};

    #[test]
    fn semicolons_are_optional_as_in_html() {
        for (text, expected) in [
            ("&lt;b&gt &amp;amp; &notit; &notin; &x", "<b> &amp; ¬it; ∉ &x"),
            ("&#39;&#x27;&#128;&#0;&#xD800;&#1;&#99999999999;", "''€\u{fffd}\u{fffd}\u{fffd}"),
            ("& && &; &# &#x; &#xg", "& && &; &# &#x; &#xg"),
        ] {
            assert_eq!(unescape(text), expected);
        }
    }

    #[test]
    fn the_strict_form_leaves_ambiguity_alone() {
        for (text, expected) in [
            ("this&not that &lt;b&gt;", "this&not that <b>"),
            ("&ntilde; &Ntilde; &NTILDE; &nTILDE;", "ñ Ñ Ñ &nTILDE;"),
            ("BUNDESSTRA&SZLIG;E &#59; &#x41; &#65b;", "BUNDESSTRASSE &#59; A &#65b;"),
        ] {
            assert_eq!(unescape_strict(text), expected);
        }
    }
}
