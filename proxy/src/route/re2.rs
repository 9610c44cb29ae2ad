//! Regular expressions as the xDS API means them: RE2's syntax, matched in linear time, against the whole text.
//!
//! The engine is the crate `regex`. The two dialects differ in small things that change what a pattern matches
//! (`\d` is ASCII in RE2, `{` may be a literal, `[[]` is a class of one bracket, `\<` is `<`), so a pattern is translated first.
//! Source of the dialect: <https://github.com/google/re2/wiki/Syntax>.

use std::borrow::Cow;
use std::fmt;

use regex::bytes;

/// Largest compiled program, bytes. A pattern over it is refused when the configuration is read.
const MAX_PROGRAM: usize = 2 << 20;
/// Largest cache of the lazy DFA, bytes for each pattern and thread. Over it the engine is slower, never wrong.
const MAX_DFA: usize = 1 << 20;
/// RE2 refuses higher repetition counts.
const MAX_REPEAT: u32 = 1000;

/// A pattern that must match the whole text.
#[derive(Clone)]
pub struct Pattern {
    source: Box<str>,
    regex: bytes::Regex,
}

impl Pattern {
    /// Compiles `source`.
    ///
    /// # Errors
    /// What is wrong with the pattern, in one line.
    pub fn new(source: &str) -> Result<Self, String> {
        let inner = translate(source)?;
        let build = |pattern: &str| {
            let mut builder = bytes::RegexBuilder::new(pattern);
            builder.size_limit(MAX_PROGRAM).dfa_size_limit(MAX_DFA).build().map_err(|e| one_line(&e))
        };
        // By itself first: `a)|(b` is no pattern, but inside of the anchored group it would be two without an anchor each.
        build(&inner)?;
        let regex = build(&format!(r"\A(?:{inner})\z"))?;
        Ok(Self { source: source.into(), regex })
    }

    /// Whether the whole of `text` matches.
    #[must_use]
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

/// `RegexMatchAndSubstitute`: every match of a pattern is replaced; `\0` to `\9` in the replacement are groups.
#[derive(Clone)]
pub struct Substitution {
    source: Box<str>,
    regex: regex::Regex,
    replacement: Box<[Piece]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Group(usize),
}

impl Substitution {
    /// Compiles a pattern and its replacement.
    ///
    /// # Errors
    /// What is wrong with either, in one line.
    pub fn new(pattern: &str, replacement: &str) -> Result<Self, String> {
        let regex = regex::RegexBuilder::new(&translate(pattern)?)
            .size_limit(MAX_PROGRAM)
            .dfa_size_limit(MAX_DFA)
            .build()
            .map_err(|e| one_line(&e))?;
        let pieces = parse_replacement(replacement, regex.captures_len() - 1)?;
        Ok(Self {
            source: format!("/{pattern}/ -> {replacement:?}").into(),
            regex,
            replacement: pieces.into(),
        })
    }

    /// `text` with every match replaced; borrowed when nothing matched.
    #[must_use]
    pub fn replace_all<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.regex.replace_all(text, |groups: &regex::Captures<'_>| {
            let mut out = String::new();
            for piece in &self.replacement {
                out.push_str(match piece {
                    Piece::Text(text) => text,
                    Piece::Group(n) => groups.get(*n).map_or("", |m| m.as_str()),
                });
            }
            out
        })
    }
}

impl fmt::Debug for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

fn parse_replacement(text: &str, groups: usize) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            literal.push(c);
            continue;
        }
        match chars.next() {
            Some('\\') => literal.push('\\'),
            Some(d) if d.is_ascii_digit() => {
                let n = d as usize - '0' as usize;
                if n > groups {
                    return Err(format!(
                        "the substitution refers to group \\{n}, but the pattern has {groups}"
                    ));
                }
                if !literal.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut literal).into()));
                }
                pieces.push(Piece::Group(n));
            }
            _ => {
                return Err(
                    "a backslash in the substitution must be followed by a digit or a backslash".into()
                );
            }
        }
    }
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal.into()));
    }
    Ok(pieces)
}

/// The crate's errors draw the pattern over several lines; the last line says what is wrong.
fn one_line(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => format!("the pattern compiles to more than {limit} bytes"),
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or(&text);
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    }
}

const DIGIT: &str = "0-9";
const WORD: &str = "0-9A-Za-z_";
const SPACE: &str = r"\t\n\x0C\r ";

/// RE2 syntax -> the syntax of crate `regex`.
fn translate(re2: &str) -> Result<String, String> {
    Translator { rest: re2, out: String::with_capacity(re2.len() + 16) }.run()
}

struct Translator<'a> {
    rest: &'a str,
    out: String,
}

impl<'a> Translator<'a> {
    fn run(mut self) -> Result<String, String> {
        while let Some(c) = self.next() {
            match c {
                '\\' => self.escape(false)?,
                '[' => self.class()?,
                '(' => self.group()?,
                '{' => self.repeat()?,
                _ => self.out.push(c),
            }
        }
        Ok(self.out)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self, n: usize) -> &'a str {
        let (head, tail) = self.rest.split_at(n);
        self.rest = tail;
        head
    }

    /// After `(`: only the groups and flags that RE2 has.
    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        if !self.rest.starts_with('?') {
            return Ok(());
        }
        let named = self.rest.strip_prefix("?P<").or_else(|| self.rest.strip_prefix("?<"));
        if named.is_some_and(|name| !name.starts_with(['=', '!'])) {
            return Ok(()); // The engine reads the name itself.
        }
        let end = self.rest.find([':', ')']).ok_or("missing closing )")?;
        let flags = &self.rest[1..end];
        if !flags.chars().all(|c| matches!(c, 'i' | 'm' | 's' | 'U' | '-')) {
            return Err("look-around and this kind of group are not in RE2's syntax".into());
        }
        let text = self.take(end + 1);
        self.out.push_str(text);
        Ok(())
    }

    /// After `{`: a repetition, or a literal brace.
    fn repeat(&mut self) -> Result<(), String> {
        let body = self.rest.split_once('}').map(|(body, _)| body);
        let Some(body) = body.filter(|b| is_repetition(b)) else {
            self.out.push_str(r"\{");
            return Ok(());
        };
        let over = |n: &str| !n.is_empty() && n.parse::<u32>().map_or(true, |n| n > MAX_REPEAT);
        if body.split(',').any(over) {
            return Err(format!("a repetition count is over {MAX_REPEAT}"));
        }
        let text = self.take(body.len() + 1);
        self.out.push('{');
        self.out.push_str(text);
        Ok(())
    }

    /// After a backslash.
    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let c = self.next().ok_or("trailing backslash")?;
        match c {
            'd' | 'w' | 's' | 'D' | 'W' | 'S' => self.perl_class(c, in_class),
            'a' => self.out.push_str(r"\x07"),
            'f' | 'n' | 'r' | 't' | 'v' => {
                self.out.push('\\');
                self.out.push(c);
            }
            'x' => self.hex()?,
            'p' | 'P' => self.property(c)?,
            '0'..='7' => self.octal(c)?,
            'b' | 'B' if !in_class => {
                self.out.push_str(r"(?-u:\");
                self.out.push(c);
                self.out.push(')');
            }
            'A' | 'z' if !in_class => {
                self.out.push('\\');
                self.out.push(c);
            }
            'C' if !in_class => self.out.push_str("(?s-u:.)"),
            'Q' if !in_class => {
                let (literal, rest) = self.rest.split_once(r"\E").unwrap_or((self.rest, ""));
                self.rest = rest;
                self.out.push_str(&regex::escape(literal));
            }
            _ if c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' => self.literal(c),
            _ => return Err(format!("\\{c} is not in RE2's syntax")),
        }
        Ok(())
    }

    fn literal(&mut self, c: char) {
        if c.is_ascii_graphic() {
            self.out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
        } else {
            self.out.push(c);
        }
    }

    fn perl_class(&mut self, c: char, in_class: bool) {
        let set = match c.to_ascii_lowercase() {
            'd' => DIGIT,
            'w' => WORD,
            _ => SPACE,
        };
        match (c.is_ascii_uppercase(), in_class) {
            (true, _) => {
                self.out.push_str("[^");
                self.out.push_str(set);
                self.out.push(']');
            }
            (false, true) => self.out.push_str(set),
            (false, false) => {
                self.out.push('[');
                self.out.push_str(set);
                self.out.push(']');
            }
        }
    }

    fn hex(&mut self) -> Result<(), String> {
        let braced = self.rest.strip_prefix('{').and_then(|r| r.split_once('}')).map(|(d, _)| d);
        let (digits, len) = match braced {
            Some(digits) => (digits, digits.len() + 2),
            None => (self.rest.get(..2).unwrap_or(""), 2),
        };
        let value = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
        let value = value.filter(|_| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let value = value.ok_or("\\x must be followed by two hexadecimal digits or {digits}")?;
        self.take(len);
        self.out.push_str(&format!("\\x{{{:X}}}", u32::from(value)));
        Ok(())
    }

    fn octal(&mut self, first: char) -> Result<(), String> {
        if first != '0' && !self.peek().is_some_and(|c| matches!(c, '0'..='7')) {
            return Err("back-references are not in RE2's syntax".into());
        }
        let mut value = first as u32 - '0' as u32;
        for _ in 0..2 {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else { break };
            self.next();
            value = value * 8 + digit;
        }
        self.out.push_str(&format!("\\x{{{value:X}}}"));
        Ok(())
    }

    fn property(&mut self, kind: char) -> Result<(), String> {
        let len = match self.peek() {
            Some('{') => self.rest.find('}').ok_or("missing } after \\p{")? + 1,
            Some(c) => c.len_utf8(),
            None => return Err("\\p must be followed by a property".into()),
        };
        let text = self.take(len);
        self.out.push('\\');
        self.out.push(kind);
        self.out.push_str(text);
        Ok(())
    }

    /// After `[`. Set operators of the engine (`&&`, `--`, `~~`, nested classes) are plain characters in RE2.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.peek() == Some('^') {
            self.next();
            self.out.push('^');
        }
        let mut first = true;
        let mut after_dash = false;
        loop {
            let c = self.next().ok_or("missing closing ]")?;
            let dash = c == '-' && !first && !after_dash;
            match c {
                ']' if !first => break,
                '\\' => self.escape(true)?,
                '[' => match self.rest.strip_prefix(':').and_then(|r| r.find(":]")) {
                    Some(end) => {
                        let text = self.take(end + 3);
                        self.out.push('[');
                        self.out.push_str(text);
                    }
                    None => self.out.push_str(r"\["),
                },
                '-' if dash => self.out.push('-'),
                ']' | '-' | '&' | '~' => {
                    self.out.push('\\');
                    self.out.push(c);
                }
                _ => self.out.push(c),
            }
            after_dash = dash;
            first = false;
        }
        self.out.push(']');
        Ok(())
    }
}

fn is_repetition(body: &str) -> bool {
    let (low, high) = body.split_once(',').unwrap_or((body, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

#[cfg(test)]
mod tests;
