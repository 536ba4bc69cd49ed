//! Patterns of `matches`, compiled once. The crate `regex` takes linear time whatever the pattern and the text are.
use crate::limits::FILTER_PATTERN_BYTES_MAX;
use regex::{Regex, RegexBuilder};

/// The name of the function that the pattern of this number becomes. No expression can call it by itself.
pub fn function(number: usize) -> String {
    format!("@matches_{number}")
}

pub fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).size_limit(FILTER_PATTERN_BYTES_MAX).build().map_err(|error| match error {
        // Its text shows the pattern over several lines, and what is wrong in the last.
        regex::Error::Syntax(text) => {
            let last = text.lines().last().unwrap_or_default();
            format!("the pattern cannot be read: {}", last.trim_start_matches("error: "))
        }
        regex::Error::CompiledTooBig(_) => "the pattern is too large".to_string(),
        _ => "the pattern cannot be compiled".to_string(),
    })
}
