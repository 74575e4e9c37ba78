//! JSON as the command needs it: reports to write, and lines of a batch to read.

use std::fmt;

/// A value to be written.
#[derive(Clone, PartialEq, Debug)]
pub enum Json {
    /// Nothing.
    Null,
    /// A number as it is written.
    Number(String),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// Names and values, in order.
    Object(Vec<(&'static str, Json)>),
}

/// An object of fields of a structure, under their own names.
macro_rules! fields {
    ($of:expr, $($field:ident),+ $(,)?) => {
        $crate::json::Json::Object(vec![
            $((stringify!($field), $crate::json::ToJson::to_json(&$of.$field))),+
        ])
    };
}
pub(crate) use fields;

/// What has a form in JSON.
pub trait ToJson {
    /// That form.
    fn to_json(&self) -> Json;
}

macro_rules! numbers {
    ($($ty:ty),+) => {
        $(impl ToJson for $ty {
            fn to_json(&self) -> Json {
                Json::Number(self.to_string())
            }
        })+
    };
}
numbers!(u64, usize);

/// What is no number is null.
impl ToJson for f64 {
    fn to_json(&self) -> Json {
        if self.is_finite() { Json::Number(format!("{self:?}")) } else { Json::Null }
    }
}

impl ToJson for String {
    fn to_json(&self) -> Json {
        Json::Text(self.clone())
    }
}

impl<T: ToJson> ToJson for Option<T> {
    fn to_json(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::to_json)
    }
}

impl<T: ToJson> ToJson for Vec<T> {
    fn to_json(&self) -> Json {
        Json::List(self.iter().map(T::to_json).collect())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

impl Json {
    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, first: bool, depth: usize| {
            f.write_str(if first { "\n" } else { ",\n" })?;
            write!(f, "{:1$}", "", 2 * depth)
        };
        match self {
            Json::Null => f.write_str("null"),
            Json::Number(number) => f.write_str(number),
            Json::Text(text) => quote(text, f),
            Json::List(list) if list.is_empty() => f.write_str("[]"),
            Json::List(list) => {
                f.write_str("[")?;
                for (index, value) in list.iter().enumerate() {
                    line(f, index == 0, depth + 1)?;
                    value.write(f, depth + 1)?;
                }
                f.write_str("\n")?;
                write!(f, "{:1$}]", "", 2 * depth)
            }
            Json::Object(fields) => {
                f.write_str("{")?;
                for (index, (name, value)) in fields.iter().enumerate() {
                    line(f, index == 0, depth + 1)?;
                    quote(name, f)?;
                    f.write_str(": ")?;
                    value.write(f, depth + 1)?;
                }
                f.write_str("\n")?;
                write!(f, "{:1$}}}", "", 2 * depth)
            }
        }
    }
}

fn quote(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\0'..='\u{1f}' => write!(f, "\\u{:04x}", u32::from(c))?,
            _ => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

/// The fields of an object that holds no others: names, and their values as text; `None` for null.
///
/// Errors: one line that says what is wrong where.
pub fn read_flat(text: &str) -> Result<Vec<(String, Option<Scalar>)>, String> {
    let mut reader = Reader { text, at: 0 };
    let mut fields = Vec::new();
    reader.expect('{')?;
    if !reader.accept('}') {
        loop {
            reader.skip_space();
            let name = reader.string()?;
            reader.expect(':')?;
            fields.push((name, reader.scalar()?));
            if !reader.accept(',') {
                break;
            }
        }
        reader.expect('}')?;
    }
    reader.skip_space();
    match reader.rest() {
        "" => Ok(fields),
        _ => Err(reader.wrong("nothing more")),
    }
}

/// A value that holds no others.
#[derive(Clone, PartialEq, Debug)]
pub enum Scalar {
    /// Text.
    Text(String),
    /// A number as it was written, or `true` or `false`.
    Word(String),
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn wrong(&self, expected: &str) -> String {
        format!("expected {expected} at column {}", self.at + 1)
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn accept(&mut self, c: char) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(c);
        self.at += if found { c.len_utf8() } else { 0 };
        found
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.accept(c) { Ok(()) } else { Err(self.wrong(&format!("'{c}'"))) }
    }

    fn scalar(&mut self) -> Result<Option<Scalar>, String> {
        self.skip_space();
        let rest = self.rest();
        if rest.starts_with('"') {
            return self.string().map(|text| Some(Scalar::Text(text)));
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let word = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
        let known = matches!(word, "null" | "true" | "false")
            || word.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if !known {
            return Err(self.wrong("text or a number"));
        }
        self.at += word.len();
        Ok((word != "null").then(|| Scalar::Word(word.to_owned())))
    }

    fn string(&mut self) -> Result<String, String> {
        let Some(body) = self.rest().strip_prefix('"') else {
            return Err(self.wrong("'\"'"));
        };
        let mut out = String::new();
        let mut chars = body.char_indices();
        while let Some((index, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += 1 + index + 1;
                    return Ok(out);
                }
                '\0'..='\u{1f}' => break,
                '\\' => {
                    let (_, escape) = chars.next().ok_or_else(|| self.wrong("the text's end"))?;
                    let plain = match escape {
                        '"' | '\\' | '/' => escape,
                        'b' => '\u{8}',
                        'f' => '\u{c}',
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        'u' => unicode(&mut chars).ok_or_else(|| self.wrong("a \\u escape"))?,
                        _ => return Err(self.wrong("text without unknown escapes")),
                    };
                    out.push(plain);
                }
                _ => out.push(c),
            }
        }
        Err(self.wrong("text that ends"))
    }
}

/// The character behind `\u`: four digits, or twice as many with another `\u` for the others.
fn unicode(chars: &mut std::str::CharIndices<'_>) -> Option<char> {
    let mut unit = |prefix: &str| {
        let same = prefix.chars().all(|c| chars.next().is_some_and(|(_, found)| found == c));
        let mut digits = (0..4).map(|_| chars.next().and_then(|(_, digit)| digit.to_digit(16)));
        let value = digits.try_fold(0, |value, digit| Some(value * 16 + digit?));
        value.filter(|_| same)
    };
    match unit("")? {
        high @ 0xd800..0xdc00 => match unit("\\u")? {
            low @ 0xdc00..0xe000 => {
                char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))
            }
            _ => None,
        },
        code => char::from_u32(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn another_reader_understands_what_is_written() {
        let fields = vec![
            ("text", Json::Text("a \"b\"\\ \u{1} \u{1f600}\n".into())),
            ("list", vec![0.1, 2.0, 0.03125, f64::NAN].to_json()),
            ("empty", Json::List(vec![])),
            ("deep", Json::List(vec![Json::Object(vec![("none", None::<u64>.to_json())])])),
            ("large", u64::MAX.to_json()),
        ];
        let text = Json::Object(fields).to_string();
        let expected = serde_json::json!({
            "text": "a \"b\"\\ \u{1} \u{1f600}\n",
            "list": [0.1, 2.0, 0.03125, null],
            "empty": [],
            "deep": [{"none": null}],
            "large": u64::MAX,
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        // The same layout, too.
        assert_eq!(serde_json::to_string_pretty(&expected["deep"]).unwrap(), {
            let none = Json::Object(vec![("none", Json::Null)]);
            Json::List(vec![none]).to_string()
        });
    }

    #[test]
    fn objects_are_read_as_another_reader_does() {
        arbtest::arbtest(|u| {
            let (name, text): (String, String) = (u.arbitrary()?, u.arbitrary()?);
            let number: i32 = u.arbitrary()?;
            let value = serde_json::json!({ "name": name, "text": text, "number": number });
            let fields = read_flat(&value.to_string()).unwrap();
            let of = |key: &str| fields.iter().find(|(k, _)| k == key).and_then(|(_, v)| v.clone());
            assert_eq!(of("name"), Some(Scalar::Text(name)));
            assert_eq!(of("text"), Some(Scalar::Text(text)));
            assert_eq!(of("number"), Some(Scalar::Word(number.to_string())));
            Ok(())
        })
        .budget_ms(500);
        let escapes = r#" { "a\u00e9\ud83d\ude00\/\t" : null , "b" : -1.5e3 } "#;
        let expected = vec![
            ("aé\u{1f600}/\t".to_owned(), None),
            ("b".to_owned(), Some(Scalar::Word("-1.5e3".into()))),
        ];
        assert_eq!(read_flat(escapes), Ok(expected));
        assert_eq!(read_flat("{}"), Ok(vec![]));
    }

    #[test]
    fn what_is_no_flat_object_is_refused() {
        for text in [
            "",
            "[]",
            "{",
            "{\"a\"}",
            "{\"a\": }",
            "{\"a\": 1,}",
            "{\"a\": 1} x",
            "{\"a\": \"b}",
            "{\"a\": [1]}",
            "{\"a\": {}}",
            "{a: 1}",
            "{\"a\": \"\\x\"}",
            "{\"a\": \"\\ud800\"}",
            "{\"a\": \"\\u12\"}",
            "{\"a\": \"\n\"}",
            "{\"a\": nul}",
            "{\"a\" 1}",
            "{\"a\": \"\\",
        ] {
            let error = read_flat(text).expect_err(text);
            assert!(error.starts_with("expected ") && !error.contains('\n'), "{text}: {error}");
            assert!(serde_json::from_str::<std::collections::BTreeMap<String, i32>>(text).is_err());
        }
    }
}
