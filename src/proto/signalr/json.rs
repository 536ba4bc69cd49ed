//! The JSON hub protocol: a validating scanner that turns a record into a `Message` of byte ranges in one pass, and the small
//! tools on raw JSON text that the rest of the way needs. No allocation anywhere in this file.
use super::{Arguments, Kind, Message, MessageError, Span};
use crate::limits::{ARGUMENTS_KEPT, JSON_DEPTH_MAX};

/// Scans one record (without its 0x1E). The input must be valid UTF-8 (the caller checked); everything else is checked here:
/// the whole record is valid JSON (RFC 8259, as strict as serde_json), depth <= JSON_DEPTH_MAX, property rules of the
/// reference section 12.1 (case-sensitive names, any order, duplicates: the last wins, unknown ones skipped).
/// A property name or a `type` may be written with escapes (`"\u0074ype"`); that must work too.
///
/// Lone surrogate escapes pass inside skipped strings and arguments; in a string that the node itself has to understand
/// (`target`, `invocationId`, `error`) they are `PropertyType`, because .NET cannot read them either.
pub fn parse(record: &[u8]) -> Result<Message, MessageError> {
    let mut scanner = Scanner::new(record);
    scanner.white();
    if scanner.peek() != Some(b'{') {
        // Syntax comes first: "not a message" is said of valid JSON only.
        scanner.value(0)?;
        scanner.end()?;
        return Err(MessageError::NotAMessage);
    }
    let mut members = Members::default();
    scanner.object(|scanner, name| members.take(scanner, name))?;
    scanner.end()?;
    members.into_message()
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
pub fn kind(value: &[u8]) -> Option<ValueKind> {
    Some(match value.first()? {
        b'n' => ValueKind::Null,
        b't' | b'f' => ValueKind::Bool,
        b'-' | b'0'..=b'9' => ValueKind::Number,
        b'"' => ValueKind::String,
        b'[' => ValueKind::Array,
        b'{' => ValueKind::Object,
        _ => return None,
    })
}

/// Calls `f` with the span of each element of a valid JSON array's text (spans relative to `array`, values trimmed).
/// Returns the number of elements, or None if it is not an array.
pub fn elements(array: &[u8], mut f: impl FnMut(Span)) -> Option<u32> {
    let mut scanner = Scanner::new(array);
    scanner.white();
    let mut count = 0;
    scanner
        .array(|scanner| {
            f(scanner.value(1)?);
            count += 1;
            Ok(())
        })
        .ok()?;
    scanner.end().ok()?;
    Some(count)
}

/// Calls `f(name_contents, value)` for each member of a valid JSON object's text. None if it is not an object.
pub fn members(object: &[u8], mut f: impl FnMut(Span, Span)) -> Option<u32> {
    let mut scanner = Scanner::new(object);
    scanner.white();
    let mut count = 0;
    scanner
        .object(|scanner, name| {
            f(name.span, scanner.value(1)?);
            count += 1;
            Ok(())
        })
        .ok()?;
    scanner.end().ok()?;
    Some(count)
}

/// Appends `text` (UTF-8) as the contents of a JSON string with minimal escaping: `\"`, `\\`, and control characters
/// (`\n \r \t \b \f`, else `\u00XX`); everything else raw. Fast: copies runs.
pub fn escape(text: &[u8], out: &mut impl bytes::BufMut) {
    escape_chunks(text, |chunk| out.put_slice(chunk));
}

/// Appends a number in decimal.
pub fn integer(number: impl itoa::Integer, out: &mut impl bytes::BufMut) {
    out.put_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends the unescaped text of a JSON string's contents (valid JSON). Lone surrogates become U+FFFD.
pub fn unescape(contents: &[u8], out: &mut impl bytes::BufMut) {
    unescape_chunks(contents, |chunk| out.put_slice(chunk));
}

/// Compares a JSON string's contents (maybe escaped) with ASCII text, ignoring ASCII case, without allocating.
pub fn eq_ignore_case(contents: &[u8], ascii: &str) -> bool {
    if contents.len() == ascii.len() {
        // No escape is as short as the character it stands for, so equal lengths compare as they are.
        return contents.eq_ignore_ascii_case(ascii.as_bytes());
    }
    eq_unescaped(contents, ascii.as_bytes(), true)
}

/// Compares a JSON string's contents (maybe escaped) with ASCII text.
pub(crate) fn eq(contents: &[u8], ascii: &str) -> bool {
    contents == ascii.as_bytes() || eq_unescaped(contents, ascii.as_bytes(), false)
}

/// Whether a JSON string's contents (valid JSON) stand for well-formed text, i.e. no `\uD800` without its other half.
pub(crate) fn is_well_formed(contents: &[u8]) -> bool {
    let mut well_formed = true;
    let mut rest = contents;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let (character, used) = unescape_one(&rest[at..]);
        well_formed &= character.is_some();
        rest = &rest[at + used..];
    }
    well_formed
}

/// `escape`, given out in pieces.
pub(crate) fn escape_chunks(text: &[u8], mut f: impl FnMut(&[u8])) {
    let mut rest = text;
    loop {
        let run = plain_run(rest);
        if run > 0 {
            f(&rest[..run]);
        }
        let Some(&byte) = rest.get(run) else { return };
        match byte {
            b'"' => f(b"\\\""),
            b'\\' => f(b"\\\\"),
            b'\n' => f(b"\\n"),
            b'\r' => f(b"\\r"),
            b'\t' => f(b"\\t"),
            0x08 => f(b"\\b"),
            0x0c => f(b"\\f"),
            _ => f(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
        rest = &rest[run + 1..];
    }
}

/// `unescape`, given out in pieces, none of which splits a character.
pub(crate) fn unescape_chunks(contents: &[u8], mut f: impl FnMut(&[u8])) {
    let mut rest = contents;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        if at > 0 {
            f(&rest[..at]);
        }
        let (character, used) = unescape_one(&rest[at..]);
        f(character.unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut [0; 4]).as_bytes());
        rest = &rest[at + used..];
    }
    if !rest.is_empty() {
        f(rest);
    }
}

pub(crate) const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Reads the escape at the start of `rest`: the character (None for a lone surrogate, or where the input is not valid JSON
/// after all) and how many bytes it took, at least one.
pub(crate) fn unescape_one(rest: &[u8]) -> (Option<char>, usize) {
    debug_assert_eq!(rest.first(), Some(&b'\\'));
    let simple = match rest.get(1) {
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'u') => return unescape_unicode(rest),
        Some(&byte) if byte.is_ascii() => byte as char,
        _ => return (None, 1),
    };
    (Some(simple), 2)
}

fn unescape_unicode(rest: &[u8]) -> (Option<char>, usize) {
    let Some(first) = hex4(rest.get(2..6)) else {
        return (None, rest.len().min(2));
    };
    if !(0xd800..0xe000).contains(&first) {
        return (char::from_u32(first), 6);
    }
    // A high surrogate means something only together with the low one that follows it at once.
    if first < 0xdc00
        && rest.get(6..8) == Some(b"\\u")
        && let Some(second @ 0xdc00..0xe000) = hex4(rest.get(8..12))
    {
        return (char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)), 12);
    }
    (None, 6)
}

fn hex4(digits: Option<&[u8]>) -> Option<u32> {
    digits?.iter().try_fold(0, |value, &digit| Some(value << 4 | (digit as char).to_digit(16)?))
}

fn eq_unescaped(contents: &[u8], ascii: &[u8], ignore_case: bool) -> bool {
    // Six bytes are the longest escape of one ASCII character. This also bounds the work on a long name from a peer.
    if contents.len() < ascii.len() || contents.len() > 6 * ascii.len() {
        return false;
    }
    let mut rest = contents;
    for &expected in ascii {
        let (found, used) = match rest.first() {
            None => return false,
            Some(b'\\') => match unescape_one(rest) {
                (Some(character), used) if character.is_ascii() => (character as u8, used),
                _ => return false,
            },
            Some(&byte) => (byte, 1),
        };
        if found != expected && !(ignore_case && found.eq_ignore_ascii_case(&expected)) {
            return false;
        }
        rest = &rest[used..];
    }
    rest.is_empty()
}

/// What has been seen of a message's members so far.
#[derive(Default)]
struct Members {
    kind: Option<Kind>,
    target: Option<Span>,
    invocation_id: Option<Span>,
    arguments: Option<Arguments>,
    error: Option<Span>,
    /// `result` of a completion, `item` of a stream item: told apart when the type is known.
    result: Option<Span>,
    item: Option<Span>,
    allow_reconnect: bool,
    sequence_id: Option<u64>,
    has_streams: bool,
    /// A wrong property is reported only after the whole record has proved to be JSON, so that `Syntax` means what it says.
    fault: Option<MessageError>,
}

impl Members {
    fn take(&mut self, scanner: &mut Scanner<'_>, name: Name) -> Result<(), MessageError> {
        match property(name.span.of(scanner.bytes), name.escaped) {
            Some(Property::Type) => match scanner.integer::<i32>()? {
                Some(number) => self.kind = Some(kind_of(number)),
                None => self.wrong(),
            },
            Some(Property::Target) => self.target = self.text(scanner)?,
            Some(Property::InvocationId) => self.invocation_id = self.text(scanner)?,
            Some(Property::Error) => self.error = self.text(scanner)?,
            Some(Property::Arguments) => self.arguments = self.arguments(scanner)?,
            Some(Property::Result) => self.result = Some(scanner.value(1)?),
            Some(Property::Item) => self.item = Some(scanner.value(1)?),
            Some(Property::AllowReconnect) => match scanner.value(1)?.of(scanner.bytes) {
                b"true" => self.allow_reconnect = true,
                b"false" => self.allow_reconnect = false,
                _ => self.wrong(),
            },
            Some(Property::SequenceId) => match scanner.integer::<i64>()?.map(u64::try_from) {
                Some(Ok(number)) => self.sequence_id = Some(number),
                _ => self.wrong(),
            },
            Some(Property::StreamIds) => self.stream_ids(scanner)?,
            Some(Property::Headers) => self.headers(scanner)?,
            None => {
                scanner.value(1)?;
            }
        }
        Ok(())
    }

    fn text(&mut self, scanner: &mut Scanner<'_>) -> Result<Option<Span>, MessageError> {
        if scanner.peek() != Some(b'"') {
            scanner.value(1)?;
            self.wrong();
            return Ok(None);
        }
        let text = scanner.string()?;
        if text.escaped && !is_well_formed(text.span.of(scanner.bytes)) {
            self.wrong();
        }
        Ok(Some(text.span))
    }

    fn arguments(&mut self, scanner: &mut Scanner<'_>) -> Result<Option<Arguments>, MessageError> {
        if scanner.peek() != Some(b'[') {
            scanner.value(1)?;
            self.wrong();
            return Ok(None);
        }
        let mut arguments = Arguments::default();
        scanner.array(|scanner| {
            let span = scanner.value(2)?;
            if let Some(kept) = arguments.spans.get_mut(arguments.count as usize) {
                *kept = span;
            }
            arguments.count += 1;
            Ok(())
        })?;
        Ok(Some(arguments))
    }

    fn stream_ids(&mut self, scanner: &mut Scanner<'_>) -> Result<(), MessageError> {
        if scanner.peek() != Some(b'[') {
            scanner.value(1)?;
            self.wrong();
            return Ok(());
        }
        self.has_streams = false;
        scanner.array(|scanner| {
            self.has_streams = true;
            if scanner.peek() != Some(b'"') {
                self.wrong();
            }
            scanner.value(2).map(drop)
        })
    }

    fn headers(&mut self, scanner: &mut Scanner<'_>) -> Result<(), MessageError> {
        if scanner.peek() != Some(b'{') {
            scanner.value(1)?;
            self.wrong();
            return Ok(());
        }
        scanner.object(|scanner, _| {
            if scanner.peek() != Some(b'"') {
                self.wrong();
            }
            scanner.value(2).map(drop)
        })
    }

    fn wrong(&mut self) {
        self.fault.get_or_insert(MessageError::PropertyType);
    }

    /// Checks what each type requires (reference section 12.1, table).
    fn into_message(self) -> Result<Message, MessageError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let kind = self.kind.ok_or(MessageError::MissingType)?;
        let not_empty = |span: &Span| span.end > span.start;
        // An empty id is no id: the call is not answered (reference section 13.1).
        let invocation_id = self.invocation_id.filter(not_empty);
        let complete = match kind {
            Kind::Invocation => self.target.as_ref().is_some_and(not_empty) && self.arguments.is_some(),
            Kind::StreamInvocation => {
                self.target.as_ref().is_some_and(not_empty) && self.arguments.is_some() && invocation_id.is_some()
            }
            Kind::StreamItem => invocation_id.is_some() && self.item.is_some(),
            Kind::Completion if self.error.is_some() && self.result.is_some() => {
                return Err(MessageError::ResultAndError);
            }
            Kind::Completion | Kind::CancelInvocation => invocation_id.is_some(),
            Kind::Ack | Kind::Sequence => self.sequence_id.is_some(),
            Kind::Ping | Kind::Close | Kind::Unknown => true,
        };
        if !complete {
            return Err(MessageError::MissingProperty);
        }
        Ok(Message {
            kind,
            target: self.target,
            invocation_id,
            arguments: self.arguments.unwrap_or_default(),
            error: self.error,
            result: if kind == Kind::StreamItem { self.item } else { self.result },
            allow_reconnect: self.allow_reconnect,
            sequence_id: self.sequence_id,
            has_streams: self.has_streams,
        })
    }
}

const _: () = assert!(ARGUMENTS_KEPT >= 3, "Response_VM and the hub methods need their arguments by position");

pub(super) fn kind_of(number: i32) -> Kind {
    match number {
        1 => Kind::Invocation,
        2 => Kind::StreamItem,
        3 => Kind::Completion,
        4 => Kind::StreamInvocation,
        5 => Kind::CancelInvocation,
        6 => Kind::Ping,
        7 => Kind::Close,
        8 => Kind::Ack,
        9 => Kind::Sequence,
        _ => Kind::Unknown,
    }
}

/// The properties of hub messages, in the order of the reference's table.
#[derive(Clone, Copy)]
enum Property {
    Type,
    Target,
    Arguments,
    InvocationId,
    StreamIds,
    Headers,
    Item,
    Result,
    Error,
    AllowReconnect,
    SequenceId,
}

fn property(name: &[u8], escaped: bool) -> Option<Property> {
    if escaped {
        return PROPERTIES.iter().find(|(known, _)| eq_unescaped(name, known, false)).map(|&(_, property)| property);
    }
    Some(match name {
        b"type" => Property::Type,
        b"target" => Property::Target,
        b"arguments" => Property::Arguments,
        b"invocationId" => Property::InvocationId,
        b"streamIds" => Property::StreamIds,
        b"headers" => Property::Headers,
        b"item" => Property::Item,
        b"result" => Property::Result,
        b"error" => Property::Error,
        b"allowReconnect" => Property::AllowReconnect,
        b"sequenceId" => Property::SequenceId,
        _ => return None,
    })
}

/// The same names once more, for those written with escapes; nobody writes them so, and it need not be fast.
const PROPERTIES: [(&[u8], Property); 11] = [
    (b"type", Property::Type),
    (b"target", Property::Target),
    (b"arguments", Property::Arguments),
    (b"invocationId", Property::InvocationId),
    (b"streamIds", Property::StreamIds),
    (b"headers", Property::Headers),
    (b"item", Property::Item),
    (b"result", Property::Result),
    (b"error", Property::Error),
    (b"allowReconnect", Property::AllowReconnect),
    (b"sequenceId", Property::SequenceId),
];

/// The contents of a JSON string, and whether they hold an escape.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    pub(crate) span: Span,
    pub(crate) escaped: bool,
}

/// Walks over JSON text and checks it on the way. Never goes back, never recurses.
pub(crate) struct Scanner<'a> {
    pub(crate) bytes: &'a [u8],
    at: usize,
}

type Scanned<T> = Result<T, MessageError>;

impl<'a> Scanner<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        debug_assert!(bytes.len() <= u32::MAX as usize, "spans are 32 bits wide");
        Scanner { bytes, at: 0 }
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Steps over white space (RFC 8259 §2).
    #[inline]
    pub(crate) fn white(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Nothing but white space may follow.
    pub(crate) fn end(&mut self) -> Scanned<()> {
        self.white();
        if self.at == self.bytes.len() { Ok(()) } else { Err(MessageError::Syntax) }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Scanned<()> {
        if self.peek() != Some(byte) {
            return Err(MessageError::Syntax);
        }
        self.at += 1;
        Ok(())
    }

    /// Steps over an object; `f` is called at the start of each member's value and must step over it.
    pub(crate) fn object(&mut self, mut f: impl FnMut(&mut Self, Name) -> Scanned<()>) -> Scanned<()> {
        self.expect(b'{')?;
        self.white();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let name = self.name()?;
            f(self, name)?;
            self.white();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(MessageError::Syntax),
            }
            self.white();
        }
        self.at += 1;
        Ok(())
    }

    /// Steps over an array; `f` is called at the start of each element and must step over it.
    pub(crate) fn array(&mut self, mut f: impl FnMut(&mut Self) -> Scanned<()>) -> Scanned<()> {
        self.expect(b'[')?;
        self.white();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            f(self)?;
            self.white();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(MessageError::Syntax),
            }
            self.white();
        }
        self.at += 1;
        Ok(())
    }

    /// Steps over one value that stands inside `outer_depth` arrays and objects.
    ///
    /// The open arrays and objects are remembered as one bit each in a word, which is what bounds the depth.
    pub(crate) fn value(&mut self, outer_depth: u32) -> Scanned<Span> {
        const { assert!(JSON_DEPTH_MAX <= u64::BITS) };
        let start = self.at;
        let room = JSON_DEPTH_MAX - outer_depth;
        let mut depth = 0;
        let mut is_object = 0u64;
        loop {
            match self.peek() {
                Some(b'"') => drop(self.string()?),
                Some(open @ (b'{' | b'[')) => {
                    if depth == room {
                        return Err(MessageError::TooDeep);
                    }
                    depth += 1;
                    let object = open == b'{';
                    is_object = is_object << 1 | u64::from(object);
                    self.at += 1;
                    self.white();
                    // In ASCII the closing bracket is two after the opening one, for both kinds.
                    if self.peek() != Some(open + 2) {
                        if object {
                            self.name()?;
                        }
                        continue;
                    }
                    self.at += 1;
                    depth -= 1;
                    is_object >>= 1;
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return Err(MessageError::Syntax),
            }
            // A value has ended; so may the arrays and objects around it.
            loop {
                if depth == 0 {
                    return Ok(Span::new(start, self.at));
                }
                self.white();
                let object = is_object & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.white();
                        if object {
                            self.name()?;
                        }
                        break;
                    }
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    _ => return Err(MessageError::Syntax),
                }
                self.at += 1;
                depth -= 1;
                is_object >>= 1;
            }
        }
    }

    /// Steps over a string; the span is that of its contents.
    ///
    /// Texts inside texts are full of `\"`. So the marks of a word are all made at once and then followed one by one: where the
    /// next word starts does not depend on what this one holds, and the processor need not wait for it.
    #[inline]
    pub(crate) fn string(&mut self) -> Scanned<Name> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        'words: while let Some(chunk) = self.bytes[self.at..].first_chunk::<8>() {
            let mut marks = special_bytes(u64::from_le_bytes(*chunk));
            while marks != 0 {
                let index = marks.trailing_zeros() as usize / 8;
                match chunk[index] {
                    b'"' => return Ok(self.close_string(start, self.at + index, escaped)),
                    b'\\' => {
                        escaped = true;
                        let after = index + self.escape_len(self.at + index)?;
                        if after >= 8 {
                            self.at += after;
                            continue 'words;
                        }
                        marks &= u64::MAX << (8 * after);
                    }
                    // RFC 8259 §7: control characters must be escaped.
                    _ => return Err(MessageError::Syntax),
                }
            }
            self.at += 8;
        }
        loop {
            match self.peek() {
                Some(b'"') => return Ok(self.close_string(start, self.at, escaped)),
                Some(b'\\') => {
                    escaped = true;
                    self.at += self.escape_len(self.at)?;
                }
                Some(0x20..) => self.at += 1,
                _ => return Err(MessageError::Syntax),
            }
        }
    }

    fn close_string(&mut self, start: usize, quote: usize, escaped: bool) -> Name {
        self.at = quote + 1;
        Name { span: Span::new(start, quote), escaped }
    }

    /// Steps over a number, which is given back if it is written as a plain integer in range. That is what .NET's `GetInt32`
    /// takes: `1.0` and `1e0` are not integers. None for any other value.
    pub(crate) fn integer<T: core::str::FromStr>(&mut self) -> Scanned<Option<T>> {
        let value = self.value(1)?.of(self.bytes);
        if kind(value) != Some(ValueKind::Number) {
            return Ok(None);
        }
        Ok(core::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()))
    }

    /// A member's name with its colon and the white space up to the value.
    #[inline]
    fn name(&mut self) -> Scanned<Name> {
        let name = self.string()?;
        self.white();
        self.expect(b':')?;
        self.white();
        Ok(name)
    }

    /// Length of the escape at `at`.
    fn escape_len(&self, at: usize) -> Scanned<usize> {
        match self.bytes.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
            Some(b'u') if hex4(self.bytes.get(at + 2..at + 6)).is_some() => Ok(6),
            _ => Err(MessageError::Syntax),
        }
    }

    /// RFC 8259 §6: no leading zero, no plus sign, digits on both sides of the point and after the exponent.
    fn number(&mut self) -> Scanned<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// At least one digit.
    fn digits(&mut self) -> Scanned<()> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(MessageError::Syntax) } else { Ok(()) }
    }

    fn literal(&mut self, word: &[u8]) -> Scanned<()> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(MessageError::Syntax);
        }
        self.at += word.len();
        Ok(())
    }
}

/// Length of the prefix that holds no quote, no backslash and no control character: what a JSON string has as it is.
///
/// Each of the three tests sets the top bit of a byte that matches. A borrow may set wrong bits *above* a right one, so only the
/// lowest set bit is used.
#[inline]
pub(crate) fn plain_run(bytes: &[u8]) -> usize {
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word;
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        let quotes = zero_bytes(word ^ QUOTES);
        let backslashes = zero_bytes(word ^ BACKSLASHES);
        let controls = word.wrapping_sub(ONES * 0x20) & !word;
        let marks = (quotes | backslashes | controls) & !LOW_BITS;
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let tail = &bytes[at..];
    at + tail.iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20).unwrap_or(tail.len())
}

/// The same marks, every one of them right. A little dearer.
#[inline]
fn special_bytes(word: u64) -> u64 {
    // Adding 0x7F to the low bits of a byte carries into its top bit unless they are all zero, and never further.
    let zero_bytes = |word: u64| !(((word & LOW_BITS) + LOW_BITS) | word | LOW_BITS);
    // Below 0x20 none of the three upper bits is set.
    zero_bytes(word ^ QUOTES) | zero_bytes(word ^ BACKSLASHES) | zero_bytes(word & (ONES * 0xe0))
}

const ONES: u64 = u64::MAX / 0xff;
const LOW_BITS: u64 = ONES * 0x7f;
const QUOTES: u64 = ONES * b'"' as u64;
const BACKSLASHES: u64 = ONES * b'\\' as u64;
