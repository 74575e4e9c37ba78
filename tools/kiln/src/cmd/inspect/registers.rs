//! Estimates the registers of a kernel from its source, without its compiler.
//!
//! Counts the private variables that are in scope at once, in 32-bit registers: the variables of a
//! block and of the largest block inside it. A compiler needs fewer registers if live ranges do not
//! overlap, and more for temporaries. On GPUs the number limits occupancy: a Mali-G78 runs its
//! maximum of work-items with up to 32 registers each, and half of it with up to 64.

use std::collections::HashMap;

/// 32-bit registers of the variables of `source` that are in scope at once.
pub fn registers(source: &str) -> u32 {
    let (types, tokens) = tokens(source);
    Scanner { types, tokens: &tokens, at: 0 }.block()
}

/// Registers of each type, including types that the source defines, and the tokens without comments
/// and directives.
fn tokens(source: &str) -> (HashMap<String, u32>, Vec<String>) {
    let mut types: HashMap<String, u32> = HashMap::new();
    for (name, registers) in [("bool", 1), ("char", 1), ("uchar", 1), ("half", 1), ("int", 1)]
        .into_iter()
        .chain([("uint", 1), ("float", 1), ("size_t", 2), ("long", 2), ("ulong", 2)])
    {
        types.insert(name.to_owned(), registers);
        for width in [2, 4, 8, 16] {
            // Two values share a register.
            let each = if name == "half" { width / 2 } else { registers * width };
            types.insert(format!("{name}{width}"), each);
        }
    }
    let mut text = String::new();
    let mut rest = source;
    while let Some((before, comment)) = rest.split_once("/*") {
        text += before;
        rest = comment.split_once("*/").map_or("", |(_, after)| after);
    }
    text += rest;
    let text = text.replace("\\\n", " ");
    let mut list = Vec::new();
    for line in text.lines().map(|line| line.split("//").next().unwrap_or("").trim()) {
        if let Some(define) = line.strip_prefix("#define ") {
            if let Some((name, value)) = define.split_once(' ')
                && let Some(registers) = types.get(value.trim()).copied()
            {
                types.insert(name.to_owned(), registers);
            }
        } else if !line.starts_with('#') {
            push_tokens(line, &mut list);
        }
    }
    (types, list)
}

/// Splits a line into words. Every other character is a token.
fn push_tokens(line: &str, list: &mut Vec<String>) {
    let mut word = String::new();
    for c in line.chars() {
        if c.is_alphanumeric() || c == '_' || c == '.' {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            list.push(std::mem::take(&mut word));
        }
        if !c.is_whitespace() {
            list.push(c.to_string());
        }
    }
    list.extend((!word.is_empty()).then_some(word));
}

struct Scanner<'a> {
    types: HashMap<String, u32>,
    tokens: &'a [String],
    at: usize,
}

impl Scanner<'_> {
    fn token(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", String::as_str)
    }

    /// Registers of the declarations up to the end of the block, and of its largest inner block.
    fn block(&mut self) -> u32 {
        let (mut own, mut inner) = (0, 0);
        // Whether a statement, or the head of a loop, begins here.
        let mut begins = true;
        while self.at < self.tokens.len() {
            let token = self.token(0).to_owned();
            if begins && let Some(registers) = self.declaration() {
                own += registers;
                continue;
            }
            self.at += 1;
            match token.as_str() {
                "{" => inner = inner.max(self.block()),
                "}" => break,
                _ => {}
            }
            begins = matches!(token.as_str(), "{" | "}" | ";")
                || token == "(" && self.at >= 2 && self.tokens[self.at - 2] == "for";
        }
        own + inner
    }

    /// Registers of a declaration `const T a = .., b[2];`. Skips initial values, except the last
    /// one.
    fn declaration(&mut self) -> Option<u32> {
        let mut ahead = 0;
        let mut shared = false;
        while matches!(self.token(ahead), "const" | "__global" | "__local" | "volatile") {
            shared |= self.token(ahead) == "__local";
            ahead += 1;
        }
        let each = *self.types.get(self.token(ahead))?;
        ahead += 1;
        while self.token(ahead) == "const" {
            ahead += 1;
        }
        let pointer = self.token(ahead) == "*";
        let is_name = |t: &str| t.starts_with(|c: char| c.is_alphabetic() || c == '_');
        while matches!(self.token(ahead), "*" | "const" | "restrict") {
            ahead += 1;
        }
        if !is_name(self.token(ahead)) || self.token(ahead + 1) == "(" {
            return None;
        }
        self.at += ahead;
        let mut registers = 0;
        loop {
            self.at += 1;
            let mut count = 1;
            while self.token(0) == "[" {
                count *= self.token(1).trim_end_matches('u').parse().unwrap_or(1);
                while !matches!(self.token(0), "]" | "") {
                    self.at += 1;
                }
                self.at += 1;
            }
            registers += if pointer { 2 } else { each * count };
            if !self.skip_value() {
                break;
            }
        }
        Some(if shared && !pointer { 0 } else { registers })
    }

    /// Skips an initial value. Returns whether another name follows.
    fn skip_value(&mut self) -> bool {
        let mut depth = 0;
        loop {
            match self.token(0) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" if depth == 0 => return false,
                ")" | "]" | "}" => depth -= 1,
                "," if depth == 0 => {
                    self.at += 1;
                    return true;
                }
                ";" | "" => return false,
                _ => {}
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::registers;

    #[test]
    fn variables_in_scope_at_once_are_counted() {
        let kernel = |body: &str| {
            let source = format!(
                "#define FV float4\n#define W_T half\n/* int unused; */\n\
                 __kernel void k(__global const float *x, uint n)\n{{\n{body}\n}}"
            );
            registers(&source)
        };
        assert_eq!(kernel(""), 0);
        assert_eq!(kernel("const uint a = f(1, 2), b = 3; // int c;"), 2);
        assert_eq!(kernel("FV c0 = (FV)(0.0f), c1 = c0; c0 = c1;"), 8);
        assert_eq!(kernel("float s[4]; const __global W_T *w = x; size_t at = 0;"), 4 + 2 + 2);
        assert_eq!(kernel("__local float tile[256]; FV v;"), 4);
        assert_eq!(kernel("half4 h; half2 g = 0, k; half one;"), 2 + 1 + 1 + 1);
        let blocks = "int a = 0; { FV b; { int c; } } for (uint i = 0; i < n; i++) { float8 d; }";
        assert_eq!(kernel(blocks), 1 + 1 + 8);
    }
}
