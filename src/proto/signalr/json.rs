//! The JSON hub protocol: a validating scanner that turns a record into a `Message` of byte ranges in one pass, and the small
//! tools on raw JSON text that the rest of the way needs. No allocation anywhere in this file.
use super::{Message, MessageError, Span};

/// Scans one record (without its 0x1E). The input must be valid UTF-8 (the caller checked); everything else is checked here:
/// the whole record is valid JSON (RFC 8259, as strict as serde_json), depth <= JSON_DEPTH_MAX, property rules of the
/// reference section 12.1 (case-sensitive names, any order, duplicates: the last wins, unknown ones skipped).
/// A property name or a `type` may be written with escapes (`"\u0074ype"`); that must work too.
pub fn parse(_record: &[u8]) -> Result<Message, MessageError> {
    todo!()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

/// Kind of a JSON value by its first byte (the value is known to be valid).
pub fn kind(_value: &[u8]) -> Option<ValueKind> {
    todo!()
}

/// Calls `f` with the span of each element of a valid JSON array's text (spans relative to `array`, values trimmed).
/// Returns the number of elements, or None if it is not an array.
pub fn elements(_array: &[u8], _f: impl FnMut(Span)) -> Option<u32> {
    todo!()
}

/// Calls `f(name_contents, value)` for each member of a valid JSON object's text. None if it is not an object.
pub fn members(_object: &[u8], _f: impl FnMut(Span, Span)) -> Option<u32> {
    todo!()
}

/// Appends `text` (UTF-8) as the contents of a JSON string with minimal escaping: `\"`, `\\`, and control characters
/// (`\n \r \t \b \f`, else `\u00XX`); everything else raw. Fast: copies runs.
pub fn escape(_text: &[u8], _out: &mut impl bytes::BufMut) {
    todo!()
}

/// Appends the unescaped text of a JSON string's contents (valid JSON). Lone surrogates become U+FFFD.
pub fn unescape(_contents: &[u8], _out: &mut impl bytes::BufMut) {
    todo!()
}

/// Compares a JSON string's contents (maybe escaped) with ASCII text, ignoring ASCII case, without allocating.
pub fn eq_ignore_case(_contents: &[u8], _ascii: &str) -> bool {
    todo!()
}
