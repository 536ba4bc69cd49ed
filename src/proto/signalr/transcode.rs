//! Values of one protocol in the other: MessagePack as the JSON text that System.Text.Json would write (contract 2.2), JSON values
//! as str.
use super::Span;
use super::json;
use super::msgpack::{self, Reader, write};
use crate::limits::JSON_DEPTH_MAX;
use crate::proto::calendar;
use alloc::vec::Vec;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use core::fmt::{self, Write as _};
use rmp::Marker;

/// Why a MessagePack value has no JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranscodeError {
    /// Not one whole MessagePack value.
    Syntax,
    TooDeep,
    /// A str that is not UTF-8.
    Text,
    /// NaN or an infinity.
    Number,
    /// A timestamp of no length that there is, or outside of .NET's years 0001 to 9999.
    Timestamp,
    /// Any other extension type: its meaning is known to its application only.
    Extension,
    /// A map key that is nil, bytes, an extension, an array or a map.
    Key,
}

/// Appends one encoded MessagePack value as JSON text. On an error nothing is appended.
///
/// Order and duplicates of map keys stay as they are. Bytes become a base64 string; a timestamp becomes an ISO 8601 string in
/// UTC, with .NET's resolution of 100 ns; keys that are integers, floats or booleans become strings. Integers keep all their
/// digits, floats have as few as bring the same number back, and no fraction if they are whole. What has no JSON is an error
/// and never something else.
///
/// The value may be nested as deep as an invocation's argument may (`json::parse`): JSON_DEPTH_MAX, of which the message and its
/// list of arguments are two. The text has at most seven times the bytes of the value, and two: a map of booleans to booleans.
pub fn to_json(value: &[u8], out: &mut Vec<u8>) -> Result<(), TranscodeError> {
    let start = out.len();
    let mut writer = Writer { reader: Reader::new(value), out };
    let mut result = writer.value();
    if result.is_ok() && writer.reader.at() != value.len() {
        result = Err(TranscodeError::Syntax);
    }
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Appends a valid JSON value as a MessagePack str: of a string its text, of anything else its JSON text. Half a surrogate pair
/// becomes U+FFFD.
pub fn to_text(value: &[u8], out: &mut Vec<u8>) {
    match value {
        [b'"', contents @ .., b'"'] if memchr::memchr(b'\\', contents).is_none() => write::text(contents, out),
        [b'"', contents @ .., b'"'] => write::text_with(out, |out| json::unescape(contents, out)),
        _ => write::text(value, out),
    }
}

/// The message's array and that of its arguments.
const OUTER_DEPTH: u32 = 2;
const DEPTH: usize = (JSON_DEPTH_MAX - OUTER_DEPTH) as usize;

struct Writer<'a> {
    reader: Reader<'a>,
    out: &'a mut Vec<u8>,
}

/// An array or a map that has not ended.
#[derive(Clone, Copy)]
struct Open {
    /// Items or pairs still to come, the one in progress included.
    left: u32,
    is_map: bool,
}

type Written = Result<(), TranscodeError>;

/// Lengths and numbers of a value that is cut, or larger than what is there.
fn cut<E>(_: E) -> TranscodeError {
    TranscodeError::Syntax
}

impl Writer<'_> {
    fn value(&mut self) -> Written {
        let mut open = [Open { left: 0, is_map: false }; DEPTH];
        let mut depth = 0;
        loop {
            let marker = self.reader.marker().map_err(cut)?;
            let is_map = msgpack::is_map_marker(marker);
            if is_map || msgpack::is_array_marker(marker) {
                let innermost = open.get_mut(depth).ok_or(TranscodeError::TooDeep)?;
                let left = if is_map { self.reader.map_len() } else { self.reader.array_len() }.map_err(cut)?;
                self.out.push(if is_map { b'{' } else { b'[' });
                if left > 0 {
                    *innermost = Open { left, is_map };
                    depth += 1;
                    if is_map {
                        self.key()?;
                    }
                    continue;
                }
                self.out.push(if is_map { b'}' } else { b']' });
            } else {
                self.scalar(marker)?;
            }
            // A value has ended; so may the arrays and maps around it.
            loop {
                let Some(innermost) = open[..depth].last_mut() else { return Ok(()) };
                innermost.left -= 1;
                let is_map = innermost.is_map;
                if innermost.left > 0 {
                    self.out.push(b',');
                    if is_map {
                        self.key()?;
                    }
                    break;
                }
                self.out.push(if is_map { b'}' } else { b']' });
                depth -= 1;
            }
        }
    }

    /// A map's key with its colon.
    fn key(&mut self) -> Written {
        let marker = self.reader.marker().map_err(cut)?;
        match marker {
            marker if msgpack::is_text_marker(marker) => self.scalar(marker)?,
            marker
                if is_integer(marker) || matches!(marker, Marker::True | Marker::False | Marker::F32 | Marker::F64) =>
            {
                self.out.push(b'"');
                self.scalar(marker)?;
                self.out.push(b'"');
            }
            _ => return Err(TranscodeError::Key),
        }
        self.out.push(b':');
        Ok(())
    }

    /// A value that holds no others.
    fn scalar(&mut self, marker: Marker) -> Written {
        match marker {
            Marker::Null => {
                self.reader.advance(1).map_err(cut)?;
                self.out.extend_from_slice(b"null");
            }
            Marker::True | Marker::False => {
                let value = self.reader.boolean().map_err(cut)?;
                self.out.extend_from_slice(if value { b"true" } else { b"false" });
            }
            Marker::F32 => {
                let number = self.reader.f32().map_err(cut)?;
                self.float(number, number.is_finite(), 7)?;
            }
            Marker::F64 => {
                let number = self.reader.f64().map_err(cut)?;
                self.float(number, number.is_finite(), 15)?;
            }
            marker if msgpack::is_text_marker(marker) => {
                let text = self.reader.unchecked_text().map_err(cut)?.of(self.reader.body);
                core::str::from_utf8(text).map_err(|_| TranscodeError::Text)?;
                self.out.push(b'"');
                json::escape(text, self.out);
                self.out.push(b'"');
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let bytes = self.reader.binary().map_err(cut)?;
                self.base64(bytes.of(self.reader.body));
            }
            marker if msgpack::is_extension_marker(marker) => match self.reader.extension().map_err(cut)? {
                (TIMESTAMP, data) => self.timestamp(data)?,
                _ => return Err(TranscodeError::Extension),
            },
            marker if is_integer(marker) => {
                let number = self.reader.integer().map_err(cut)?;
                match u64::try_from(number) {
                    Ok(number) => json::integer(number, self.out),
                    Err(_) => json::integer(number as i64, self.out),
                }
            }
            // 0xC1 is never used.
            _ => return Err(TranscodeError::Syntax),
        }
        Ok(())
    }

    /// A number in .NET's "shortest round-trip" form: with an exponent only where the digits before the point are more than
    /// `digits` (or than it has), or zeros behind it are more than three: `1E+16`, `1.5E-07`.
    fn float<F: fmt::Display + fmt::UpperExp>(&mut self, number: F, is_finite: bool, digits: usize) -> Written {
        if !is_finite {
            return Err(TranscodeError::Number);
        }
        let start = self.out.len();
        self.format(format_args!("{number:E}"));
        let written = &self.out[start..];
        let mark = written.iter().position(|&byte| byte == b'E').unwrap_or(written.len());
        let exponent = written.get(mark + 1..).and_then(|digits| core::str::from_utf8(digits).ok()?.parse().ok());
        let exponent: i32 = exponent.unwrap_or(0);
        let found = written[..mark].iter().filter(|byte| byte.is_ascii_digit()).count();
        if (-3..=found.max(digits) as i32).contains(&(exponent + 1)) {
            self.out.truncate(start);
            self.format(format_args!("{number}"));
        } else {
            self.out.truncate(start + mark);
            self.format(format_args!("E{exponent:+03}"));
        }
        Ok(())
    }

    /// Appends formatted text, without a `String` between.
    fn format(&mut self, arguments: fmt::Arguments<'_>) {
        struct Text<'a>(&'a mut Vec<u8>);
        impl fmt::Write for Text<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.extend_from_slice(text.as_bytes());
                Ok(())
            }
        }
        let written = Text(self.out).write_fmt(arguments);
        debug_assert!(written.is_ok(), "a vector takes all");
    }

    fn base64(&mut self, bytes: &[u8]) {
        self.out.push(b'"');
        let start = self.out.len();
        self.out.resize(start + bytes.len().div_ceil(3) * 4, 0);
        let written = STANDARD.encode_slice(bytes, &mut self.out[start..]);
        debug_assert_eq!(written.ok(), Some(self.out.len() - start));
        self.out.push(b'"');
    }

    /// The timestamp extension in its three forms: 32 bits of seconds; 30 bits of nanoseconds and 34 of seconds; 32 bits of
    /// nanoseconds and 64 of signed seconds.
    fn timestamp(&mut self, data: Span) -> Written {
        const NANOSECONDS_PER_SECOND: u32 = 1_000_000_000;
        let (seconds, nanoseconds) = match *data.of(self.reader.body) {
            [a, b, c, d] => (i64::from(u32::from_be_bytes([a, b, c, d])), 0),
            [a, b, c, d, e, f, g, h] => {
                let packed = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                ((packed & ((1 << 34) - 1)) as i64, (packed >> 34) as u32)
            }
            [a, b, c, d, e, f, g, h, i, j, k, l] => {
                (i64::from_be_bytes([e, f, g, h, i, j, k, l]), u32::from_be_bytes([a, b, c, d]))
            }
            _ => return Err(TranscodeError::Timestamp),
        };
        if nanoseconds >= NANOSECONDS_PER_SECOND || !calendar::SECONDS.contains(&seconds) {
            return Err(TranscodeError::Timestamp);
        }
        self.out.push(b'"');
        self.out.extend_from_slice(&calendar::date_time(seconds));
        // .NET counts in 100 ns, and cuts off what is finer.
        let mut fraction = *b".0000000";
        calendar::put_digits(u64::from(nanoseconds / 100), &mut fraction[1..]);
        let zeros = fraction.iter().rev().take_while(|&&digit| digit == b'0').count();
        let kept = fraction.len() - zeros;
        if kept > 1 {
            self.out.extend_from_slice(&fraction[..kept]);
        }
        self.out.extend_from_slice(b"Z\"");
        Ok(())
    }
}

/// The type of the one extension that MessagePack itself defines.
const TIMESTAMP: i8 = -1;

fn is_integer(marker: Marker) -> bool {
    use Marker::{FixNeg, FixPos, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(marker, FixPos(_) | FixNeg(_) | U8 | U16 | U32 | U64 | I8 | I16 | I32 | I64)
}
