//! Tokens of an expression, before the parser sees them. The parser recurses and its errors list every token of the grammar; what passes
//! here is bounded in depth and has well-formed literals, and what does not gets a sentence of its own.
use super::FilterFault;
use crate::limits::{FILTER_BYTES_MAX, FILTER_DEPTH_MAX};
use core::ops::Range;

/// Where each token stands, without white space and comments.
pub fn tokens(text: &str) -> Result<Vec<Range<usize>>, FilterFault> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(FilterFault {
            offset: FILTER_BYTES_MAX,
            reason: format!("the filter has {} bytes, more than {FILTER_BYTES_MAX}", text.len()),
            remedy: "split it over several upstreams, or match a pattern".into(),
        });
    }
    let mut scanner = Scanner { text, at: 0, levels: vec![Level::default()] };
    let mut tokens = Vec::new();
    while let Some(token) = scanner.next()? {
        tokens.push(token);
    }
    if tokens.is_empty() {
        return Err(FilterFault {
            offset: 0,
            reason: "the filter is empty".into(),
            remedy: "leave `filter` out to take every message".into(),
        });
    }
    Ok(tokens)
}

/// Between two brackets: what makes the syntax tree deeper there.
#[derive(Default)]
struct Level {
    /// `a ? b : c ? d : e` nests to the right.
    conditions: usize,
    /// `a.b.c` and `a + b + c` nest to the left; `&&` and `||` begin anew, because the parser balances them.
    chain: usize,
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    levels: Vec<Level>,
}

impl Scanner<'_> {
    fn next(&mut self) -> Result<Option<Range<usize>>, FilterFault> {
        self.white();
        let start = self.at;
        let Some(&first) = self.rest().first() else { return Ok(None) };
        match first {
            b'"' | b'\'' => self.string(start, false)?,
            b'0'..=b'9' => self.number(),
            b'.' if self.byte(1).is_some_and(|next| next.is_ascii_digit()) => self.number(),
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => self.word(start)?,
            _ => self.operator(first)?,
        }
        self.check_depth(start)?;
        Ok(Some(start..self.at))
    }

    fn rest(&self) -> &[u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.rest().get(ahead).copied()
    }

    fn white(&mut self) {
        loop {
            match self.byte(0) {
                Some(b' ' | b'\t' | b'\r' | b'\n' | 0x0c) => self.at += 1,
                Some(b'/') if self.byte(1) == Some(b'/') => {
                    self.at += self.rest().iter().position(|&byte| byte == b'\n').unwrap_or(self.rest().len());
                }
                _ => return,
            }
        }
    }

    /// Loosely: the parser says what a number is. It cannot nest.
    fn number(&mut self) {
        while let Some(byte) = self.byte(0) {
            let is_sign = matches!(byte, b'+' | b'-') && matches!(self.text.as_bytes()[self.at - 1], b'e' | b'E');
            if !(byte.is_ascii_alphanumeric() || byte == b'.' || is_sign && !self.text[..self.at].ends_with("0xe")) {
                return;
            }
            self.at += 1;
        }
    }

    fn word(&mut self, start: usize) -> Result<(), FilterFault> {
        while self.byte(0).is_some_and(|byte| byte == b'_' || byte.is_ascii_alphanumeric()) {
            self.at += 1;
        }
        let word = &self.text[start..self.at];
        if word == "in" {
            self.chain();
        }
        if !matches!(self.byte(0), Some(b'"' | b'\'')) {
            return Ok(());
        }
        match word {
            "r" | "R" => self.string(start, true),
            "b" | "B" | "br" | "bR" | "Br" | "BR" => {
                Err(fault(start, "bytes are not known to filters", "write a text, without `b`"))
            }
            _ => Ok(()),
        }
    }

    /// From its quote on.
    fn string(&mut self, start: usize, is_raw: bool) -> Result<(), FilterFault> {
        let quote = self.rest()[0];
        if self.rest().starts_with(&[quote; 3]) {
            return Err(fault(start, "a text in three quotes", "write one quote, and \\n for a new line"));
        }
        self.at += 1;
        loop {
            match self.byte(0) {
                None | Some(b'\r' | b'\n') => {
                    let remedy = format!("close it with `{}` on the same line", char::from(quote));
                    return Err(fault(start, "the text has no end", &remedy));
                }
                Some(byte) if byte == quote => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') if !is_raw => self.escape()?,
                Some(_) => self.at += 1,
            }
        }
    }

    /// The escapes of CEL's language definition, "String and Bytes Values".
    fn escape(&mut self) -> Result<(), FilterFault> {
        let digits = |from: usize, count: usize, radix: u32| {
            let digits = self.text.get(self.at + from..self.at + from + count)?;
            // A sign would pass for a digit.
            let are_digits = digits.chars().all(|digit| digit.is_digit(radix));
            char::from_u32(u32::from_str_radix(digits, radix).ok().filter(|_| are_digits)?)?;
            Some(from + count)
        };
        let used = match self.byte(1) {
            Some(b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' | b'\\' | b'?' | b'"' | b'\'' | b'`') => Some(2),
            Some(b'x' | b'X') => digits(2, 2, 16),
            Some(b'u') => digits(2, 4, 16),
            Some(b'U') => digits(2, 8, 16),
            Some(b'0'..=b'3') => digits(1, 3, 8),
            _ => None,
        };
        let Some(used) = used else {
            let remedy = "write `\\\\` for a backslash, or r\"...\" for a text without escapes";
            return Err(fault(self.at, "not an escape", remedy));
        };
        self.at += used;
        Ok(())
    }

    fn operator(&mut self, first: u8) -> Result<(), FilterFault> {
        let start = self.at;
        let second = self.byte(1);
        let doubled = second == Some(first);
        let (length, depth): (usize, fn(&mut Self)) = match first {
            b'(' | b'[' => (1, |scanner| scanner.levels.push(Level::default())),
            b')' | b']' => (1, Self::close),
            b',' => (1, |scanner| *scanner.level() = Level::default()),
            b'?' => (1, |scanner| scanner.level().conditions += 1),
            b':' => (1, |scanner| scanner.level().chain = 0),
            b'&' | b'|' if doubled => (2, |scanner| scanner.level().chain = 0),
            b'=' if doubled => (2, Self::chain),
            b'!' | b'<' | b'>' if second == Some(b'=') => (2, Self::chain),
            b'!' => (1, |_| {}),
            b'.' | b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' => (1, Self::chain),
            b'=' if second == Some(b'>') => {
                let remedy = "write what stands behind it, about `vm_id`, `call_type` and the others";
                return Err(fault(start, "a filter is no lambda", remedy));
            }
            b'=' => return Err(fault(start, "`=` is no operator", "write `==` to compare")),
            b'&' | b'|' => {
                let sign = char::from(first);
                return Err(fault(start, &format!("`{sign}` is no operator"), &format!("write `{sign}{sign}`")));
            }
            b'{' | b'}' => return Err(fault(start, "maps cannot be written in a filter", "use lists: `[...]`")),
            _ => {
                let character = self.text[start..].chars().next().unwrap_or_default();
                let reason = format!("`{}` is no part of an expression", character.escape_debug());
                return Err(fault(start, &reason, "put texts in quotes"));
            }
        };
        self.at += length;
        depth(self);
        Ok(())
    }

    fn level(&mut self) -> &mut Level {
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    fn chain(&mut self) {
        self.level().chain += 1;
    }

    /// A closing bracket too many is the parser's to say. What was in brackets is one more link: `a[0][1]`.
    fn close(&mut self) {
        if self.levels.len() > 1 {
            self.levels.pop();
        }
        self.chain();
    }

    fn check_depth(&self, offset: usize) -> Result<(), FilterFault> {
        let depth: usize = self.levels.iter().map(|level| 1 + level.conditions + level.chain).sum();
        if depth > FILTER_DEPTH_MAX {
            let reason = format!("the filter is nested more than {FILTER_DEPTH_MAX} deep");
            return Err(fault(offset, &reason, "write it with fewer parentheses and operators in a row"));
        }
        Ok(())
    }
}

fn fault(offset: usize, reason: &str, remedy: &str) -> FilterFault {
    FilterFault { offset, reason: reason.into(), remedy: remedy.into() }
}
