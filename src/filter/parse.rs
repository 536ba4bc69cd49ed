//! Text to syntax tree, by the crate `cel`. Its errors become faults that point into the text.
use super::{FilterFault, scan};
use cel::common::ast::{IdedExpr, SourceInfo};
use cel::parser::{ParseError, Parser};
use core::ops::Range;

pub struct Parsed<'a> {
    pub text: &'a str,
    pub expression: IdedExpr,
    positions: SourceInfo,
}

pub fn parse(text: &str) -> Result<Parsed<'_>, FilterFault> {
    let tokens = scan::tokens(text)?;
    match Parser::new().parse_with_source_info(text) {
        Ok((expression, positions)) => Ok(Parsed { text, expression, positions }),
        Err(errors) => Err(match errors.errors.first() {
            Some(error) => fault(text, &tokens, error),
            None => unexpected(text, &tokens, text.len()),
        }),
    }
}

impl<'a> Parsed<'a> {
    /// Of the token that stands for a node: an operator, the point before a member, the parenthesis of a call.
    pub fn position(&self, id: u64) -> usize {
        let position = self.positions.offset_for(id).map_or(0, |(start, _)| start as usize);
        if self.text.is_char_boundary(position) { position } else { 0 }
    }

    /// The name in front of a call's parenthesis, and where it begins.
    pub fn called(&self, id: u64) -> (usize, &'a str) {
        let before = self.text[..self.position(id)].trim_end();
        let start = before.rfind(|character: char| !(character == '_' || character.is_ascii_alphanumeric()));
        let start = start.map_or(0, |at| at + 1);
        (start, &before[start..])
    }
}

fn fault(text: &str, tokens: &[Range<usize>], error: &ParseError) -> FilterFault {
    let offset = offset(text, error.pos);
    // The parser's own sentences about syntax list all that could have stood there.
    if error.msg.starts_with("Syntax error") || error.pos.0 < 1 {
        return unexpected(text, tokens, offset);
    }
    let remedy = match error.msg.as_str() {
        "argument must be a simple name" => "the first argument is a name for each element, e.g. `x`",
        "invalid argument to has() macro" => "it asks for a member: `has(data.Name)`",
        message if message.starts_with("invalid int") => "integers have 64 bits",
        message if message.starts_with("reserved") => "take another name",
        _ => "write it without",
    };
    FilterFault { offset, reason: error.msg.replace('\'', "`"), remedy: remedy.into() }
}

fn unexpected(text: &str, tokens: &[Range<usize>], offset: usize) -> FilterFault {
    let index = tokens.iter().position(|token| token.end > offset);
    let Some(index) = index else {
        return FilterFault {
            offset: text.trim_end().len(),
            reason: "something is missing at the end".into(),
            remedy: "complete the expression, and close every parenthesis".into(),
        };
    };
    let token = &text[tokens[index].clone()];
    let before = index.checked_sub(1).map_or("", |index| &text[tokens[index].clone()]);
    let remedy = match (token, before) {
        ("and", _) => "write `&&`",
        ("or", _) => "write `||`",
        (_, "not") => "write `!`",
        (")" | "]", _) => "something is missing before it, or it closes what was not opened",
        (token, _) if token.starts_with(['"', '\'']) => "an operator is missing before it",
        _ => "something is missing before it, or it is one too many",
    };
    FilterFault {
        offset: tokens[index].start,
        reason: format!("`{token}` is not expected here"),
        remedy: remedy.into(),
    }
}

/// The parser counts lines, and characters in a line, both from 1.
fn offset(text: &str, (line, column): (isize, isize)) -> usize {
    let (Ok(line), Ok(column)) = (usize::try_from(line - 1), usize::try_from(column - 1)) else { return 0 };
    let before: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let within: usize = text[before..].chars().take(column).map(char::len_utf8).sum();
    before + within
}
