//! The MessagePack hub protocol, read and written with `rmp` (reference section 12.2). Bodies are given without their length
//! prefix. Views are zero-copy; nesting is bounded by JSON_DEPTH_MAX; extra trailing items are tolerated.
use super::json::kind_of;
use super::record::{self, PREFIX_BYTES_MAX};
use super::{Arguments, Kind, Message, MessageError, Span};
use crate::limits::JSON_DEPTH_MAX;
use alloc::vec::Vec;
use rmp::Marker;
use rmp::decode::{self, Bytes};

/// Reads one message body into a view (5- and 6-element invocations, 2-element Close, nil ids...).
///
/// A str that the node itself has to understand must be UTF-8, or it is `PropertyType`; other values are only stepped over.
pub fn parse(body: &[u8]) -> Result<Message, MessageError> {
    let mut reader = Reader::new(body);
    if !is_array_marker(reader.marker()?) {
        return Err(MessageError::NotAMessage);
    }
    let mut items = Items { left: reader.array_len()? };
    if items.left == 0 {
        return Err(MessageError::MissingType);
    }
    items.left -= 1;
    let kind = reader.integer().map(|number| i32::try_from(number).map_or(Kind::Unknown, kind_of))?;
    let mut message = Message {
        kind,
        target: None,
        invocation_id: None,
        arguments: Arguments::default(),
        error: None,
        result: None,
        allow_reconnect: false,
        sequence_id: None,
        has_streams: false,
    };
    match kind {
        Kind::Invocation | Kind::StreamInvocation => {
            items.next()?;
            reader.headers()?;
            items.next()?;
            message.invocation_id = reader.text_or_nil()?.filter(|id| !is_empty(id));
            items.next()?;
            message.target = reader.text_or_nil()?.filter(|target| !is_empty(target));
            items.next()?;
            message.arguments = reader.arguments()?;
            if items.left > 0 {
                items.next()?;
                message.has_streams = reader.stream_ids()?;
            }
            if message.target.is_none() || (kind == Kind::StreamInvocation && message.invocation_id.is_none()) {
                return Err(MessageError::MissingProperty);
            }
        }
        Kind::StreamItem | Kind::Completion | Kind::CancelInvocation => {
            items.next()?;
            reader.headers()?;
            items.next()?;
            let id = reader.text_or_nil()?.filter(|id| !is_empty(id));
            message.invocation_id = Some(id.ok_or(MessageError::MissingProperty)?);
            if kind == Kind::StreamItem {
                items.next()?;
                message.result = Some(reader.value(1)?);
            } else if kind == Kind::Completion {
                items.next()?;
                match reader.integer()? {
                    1 => {
                        items.next()?;
                        message.error = Some(reader.text_or_nil()?.ok_or(MessageError::PropertyType)?);
                    }
                    2 => {}
                    3 => {
                        items.next()?;
                        message.result = Some(reader.value(1)?);
                    }
                    _ => return Err(MessageError::ResultKind),
                }
            }
        }
        Kind::Close => {
            items.next()?;
            message.error = reader.text_or_nil()?;
            if items.left > 0 {
                items.next()?;
                message.allow_reconnect = reader.boolean()?;
            }
        }
        Kind::Ack | Kind::Sequence => {
            items.next()?;
            let number = u64::try_from(reader.integer()?).map_err(|_| MessageError::PropertyType)?;
            message.sequence_id = Some(number);
        }
        Kind::Ping | Kind::Unknown => {}
    }
    // Items that a later version may add. They are checked, so that a cut body is never taken for a message.
    for _ in 0..items.left {
        reader.value(1)?;
    }
    Ok(message)
}

/// Calls `f` with the span of each item of an encoded array (spans relative to `array`, whole encoded values). Returns the
/// number of items, or None if it is not an array.
pub fn elements(array: &[u8], mut f: impl FnMut(Span)) -> Option<u32> {
    let mut reader = Reader::new(array);
    let count = reader.array_len().ok()?;
    for _ in 0..count {
        f(reader.value(1).ok()?);
    }
    Some(count)
}

/// Calls `f(key, value)` with the spans of each pair of an encoded map. Returns the number of pairs, or None if it is not a map.
pub fn members(map: &[u8], mut f: impl FnMut(Span, Span)) -> Option<u32> {
    let mut reader = Reader::new(map);
    let count = reader.map_len().ok()?;
    for _ in 0..count {
        let key = reader.value(1).ok()?;
        f(key, reader.value(1).ok()?);
    }
    Some(count)
}

/// The span of the contents of an encoded str (relative to `value`), if it is one and UTF-8.
pub fn text(value: &[u8]) -> Option<Span> {
    Reader::new(value).text().ok()
}

/// Whether an encoded value is nil.
pub fn is_nil(value: &[u8]) -> bool {
    value.first().is_some_and(|&first| Marker::from_u8(first) == Marker::Null)
}

/// Whether an encoded value is a map.
pub fn is_map(value: &[u8]) -> bool {
    value.first().is_some_and(|&first| is_map_marker(Marker::from_u8(first)))
}

/// Appends one record: the body that `f` appends, behind its length prefix.
///
/// The length is known only afterwards. Nearly every body has 128 to 16 383 bytes and so a prefix of two; where it has not, the
/// body is moved.
pub fn write_record(out: &mut Vec<u8>, f: impl FnOnce(&mut Vec<u8>)) {
    const LIKELY_PREFIX_BYTES: usize = 2;
    const { assert!(LIKELY_PREFIX_BYTES <= PREFIX_BYTES_MAX) };
    let start = out.len();
    out.extend_from_slice(&[0; LIKELY_PREFIX_BYTES]);
    let body = out.len();
    f(out);
    let length = out.len() - body;
    let (prefix, used) = record::shortest_prefix(length as u32);
    if used != LIKELY_PREFIX_BYTES {
        out.resize(start + used.max(LIKELY_PREFIX_BYTES) + length, 0);
        out.copy_within(body..body + length, start + used);
        out.truncate(start + used + length);
    }
    out[start..start + used].copy_from_slice(&prefix[..used]);
}

/// `rmp`'s encoders on a plain vector. They cannot fail there: the error type is `Infallible`.
pub mod write {
    use alloc::vec::Vec;
    use rmp::encode::{self, ByteBuf};

    pub fn array_len(length: u32, out: &mut Vec<u8>) {
        with(out, |out| encode::write_array_len(out, length));
    }
    pub fn map_len(length: u32, out: &mut Vec<u8>) {
        with(out, |out| encode::write_map_len(out, length));
    }
    /// In its shortest form.
    pub fn uint(number: u64, out: &mut Vec<u8>) {
        with(out, |out| encode::write_uint(out, number));
    }
    /// In 64 bits.
    pub fn float(number: f64, out: &mut Vec<u8>) {
        with(out, |out| encode::write_f64(out, number));
    }
    pub fn boolean(value: bool, out: &mut Vec<u8>) {
        with(out, |out| encode::write_bool(out, value));
    }
    pub fn nil(out: &mut Vec<u8>) {
        with(out, encode::write_nil);
    }
    /// The head of a str of `length` bytes, which the caller appends.
    pub fn text_len(length: usize, out: &mut Vec<u8>) {
        debug_assert!(length <= u32::MAX as usize);
        with(out, |out| encode::write_str_len(out, length as u32));
    }
    /// A str; `text` must be UTF-8.
    pub fn text(text: &[u8], out: &mut Vec<u8>) {
        debug_assert!(core::str::from_utf8(text).is_ok());
        text_len(text.len(), out);
        out.extend_from_slice(text);
    }
    /// A str of what `f` appends, which must be UTF-8 and whose length is known only afterwards: its head is written behind it
    /// and the two are swapped.
    pub fn text_with(out: &mut Vec<u8>, f: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        f(out);
        let end = out.len();
        debug_assert!(core::str::from_utf8(&out[start..]).is_ok());
        text_len(end - start, out);
        let head = out.len() - end;
        out[start..].rotate_right(head);
    }

    /// Lends the vector to `rmp`, which without `std` writes to its own buffer type. Nothing is copied.
    fn with<R>(out: &mut Vec<u8>, f: impl FnOnce(&mut ByteBuf) -> R) {
        let mut buffer = ByteBuf::from_vec(core::mem::take(out));
        let _cannot_fail = f(&mut buffer);
        *out = buffer.into_vec();
    }
}

/// Counts down the items of a message's array.
struct Items {
    left: u32,
}

impl Items {
    fn next(&mut self) -> Result<(), MessageError> {
        self.left = self.left.checked_sub(1).ok_or(MessageError::MissingProperty)?;
        Ok(())
    }
}

fn is_empty(span: &Span) -> bool {
    span.start == span.end
}

pub(super) fn is_array_marker(marker: Marker) -> bool {
    matches!(marker, Marker::FixArray(_) | Marker::Array16 | Marker::Array32)
}

pub(super) fn is_text_marker(marker: Marker) -> bool {
    matches!(marker, Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32)
}

pub(super) fn is_extension_marker(marker: Marker) -> bool {
    use Marker::{Ext8, Ext16, Ext32, FixExt1, FixExt2, FixExt4, FixExt8, FixExt16};
    matches!(marker, FixExt1 | FixExt2 | FixExt4 | FixExt8 | FixExt16 | Ext8 | Ext16 | Ext32)
}

pub(super) fn is_map_marker(marker: Marker) -> bool {
    matches!(marker, Marker::FixMap(_) | Marker::Map16 | Marker::Map32)
}

/// Walks over encoded values. A value of the wrong type is `PropertyType`, a cut one `Syntax`.
pub(super) struct Reader<'a> {
    pub(super) body: &'a [u8],
    bytes: Bytes<'a>,
}

pub(super) type Read<T> = Result<T, MessageError>;

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        debug_assert!(body.len() <= u32::MAX as usize, "spans are 32 bits wide");
        Reader { body, bytes: Bytes::new(body) }
    }

    pub(super) fn at(&self) -> usize {
        self.body.len() - self.bytes.remaining_slice().len()
    }

    /// The next value's marker, without stepping over it.
    pub(super) fn marker(&self) -> Read<Marker> {
        self.bytes.remaining_slice().first().map(|&first| Marker::from_u8(first)).ok_or(MessageError::Syntax)
    }

    fn require(&self, is_wanted: impl FnOnce(Marker) -> bool) -> Read<()> {
        if is_wanted(self.marker()?) { Ok(()) } else { Err(MessageError::PropertyType) }
    }

    /// Each item takes a byte at least, so no length can announce more work than there are bytes.
    fn check_count(&self, count: u64) -> Read<()> {
        if count > self.bytes.remaining_slice().len() as u64 { Err(MessageError::Syntax) } else { Ok(()) }
    }

    pub(super) fn array_len(&mut self) -> Read<u32> {
        self.require(is_array_marker)?;
        let length = decode::read_array_len(&mut self.bytes).map_err(|_| MessageError::Syntax)?;
        self.check_count(u64::from(length))?;
        Ok(length)
    }

    pub(super) fn map_len(&mut self) -> Read<u32> {
        self.require(is_map_marker)?;
        let length = decode::read_map_len(&mut self.bytes).map_err(|_| MessageError::Syntax)?;
        self.check_count(2 * u64::from(length))?;
        Ok(length)
    }

    pub(super) fn integer(&mut self) -> Read<i128> {
        // i128 holds every encodable integer, so that a number out of range is not taken for one of the wrong type.
        use decode::NumValueReadError::{InvalidDataRead, InvalidMarkerRead, OutOfRange, TypeMismatch};
        decode::read_int(&mut self.bytes).map_err(|error| match error {
            TypeMismatch(_) | OutOfRange => MessageError::PropertyType,
            InvalidMarkerRead(_) | InvalidDataRead(_) => MessageError::Syntax,
        })
    }

    pub(super) fn boolean(&mut self) -> Read<bool> {
        self.require(|marker| matches!(marker, Marker::True | Marker::False))?;
        decode::read_bool(&mut self.bytes).map_err(|_| MessageError::Syntax)
    }

    fn text(&mut self) -> Read<Span> {
        let span = self.unchecked_text()?;
        core::str::from_utf8(span.of(self.body)).map_err(|_| MessageError::PropertyType)?;
        Ok(span)
    }

    /// A str's bytes, whatever they are.
    pub(super) fn unchecked_text(&mut self) -> Read<Span> {
        self.require(is_text_marker)?;
        let length = decode::read_str_len(&mut self.bytes).map_err(|_| MessageError::Syntax)?;
        self.contents(length)
    }

    pub(super) fn binary(&mut self) -> Read<Span> {
        let length = decode::read_bin_len(&mut self.bytes).map_err(|_| MessageError::Syntax)?;
        self.contents(length)
    }

    /// An extension's type and data.
    pub(super) fn extension(&mut self) -> Read<(i8, Span)> {
        let head = decode::read_ext_meta(&mut self.bytes).map_err(|_| MessageError::Syntax)?;
        Ok((head.typeid, self.contents(head.size)?))
    }

    pub(super) fn f32(&mut self) -> Read<f32> {
        decode::read_f32(&mut self.bytes).map_err(|_| MessageError::Syntax)
    }

    pub(super) fn f64(&mut self) -> Read<f64> {
        decode::read_f64(&mut self.bytes).map_err(|_| MessageError::Syntax)
    }

    fn contents(&mut self, length: u32) -> Read<Span> {
        let start = self.at();
        self.advance(u64::from(length))?;
        Ok(Span::new(start, self.at()))
    }

    fn text_or_nil(&mut self) -> Read<Option<Span>> {
        if self.marker()? == Marker::Null {
            self.advance(1)?;
            return Ok(None);
        }
        self.text().map(Some)
    }

    /// A map of str to str. .NET refuses empty keys and values (reference section 12.2).
    fn headers(&mut self) -> Read<()> {
        for _ in 0..self.map_len()? {
            if is_empty(&self.text()?) || is_empty(&self.text()?) {
                return Err(MessageError::PropertyType);
            }
        }
        Ok(())
    }

    fn arguments(&mut self) -> Read<Arguments> {
        let mut arguments = Arguments { count: self.array_len()?, ..Arguments::default() };
        for index in 0..arguments.count as usize {
            let span = self.value(2)?;
            if let Some(kept) = arguments.spans.get_mut(index) {
                *kept = span;
            }
        }
        Ok(arguments)
    }

    /// Whether there are any.
    fn stream_ids(&mut self) -> Read<bool> {
        let count = self.array_len()?;
        for _ in 0..count {
            self.text()?;
        }
        Ok(count > 0)
    }

    /// Steps over one value that stands inside `outer_depth` arrays and maps. How many values are still to come is kept for each
    /// open one, on the stack.
    fn value(&mut self, outer_depth: u32) -> Read<Span> {
        const DEPTH: usize = JSON_DEPTH_MAX as usize;
        let start = self.at();
        let mut left = [0u64; DEPTH];
        let mut depth = 0;
        loop {
            let marker = self.marker()?;
            if is_array_marker(marker) || is_map_marker(marker) {
                if depth + outer_depth as usize >= DEPTH {
                    return Err(MessageError::TooDeep);
                }
                left[depth] =
                    if is_map_marker(marker) { 2 * u64::from(self.map_len()?) } else { u64::from(self.array_len()?) };
                depth += 1;
            } else {
                self.scalar(marker)?;
            }
            while depth > 0 && left[depth - 1] == 0 {
                depth -= 1;
            }
            match depth.checked_sub(1) {
                None => return Ok(Span::new(start, self.at())),
                Some(innermost) => left[innermost] -= 1,
            }
        }
    }

    /// Steps over a value that holds no others.
    fn scalar(&mut self, marker: Marker) -> Read<()> {
        let cut = |_| MessageError::Syntax;
        let length = match marker {
            marker if is_text_marker(marker) => u64::from(decode::read_str_len(&mut self.bytes).map_err(cut)?),
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                u64::from(decode::read_bin_len(&mut self.bytes).map_err(cut)?)
            }
            marker if is_extension_marker(marker) => {
                u64::from(decode::read_ext_meta(&mut self.bytes).map_err(cut)?.size)
            }
            Marker::Null | Marker::True | Marker::False | Marker::FixPos(_) | Marker::FixNeg(_) => 1,
            Marker::U8 | Marker::I8 => 2,
            Marker::U16 | Marker::I16 => 3,
            Marker::U32 | Marker::I32 | Marker::F32 => 5,
            Marker::U64 | Marker::I64 | Marker::F64 => 9,
            // 0xC1 is never used.
            _ => return Err(MessageError::Syntax),
        };
        self.advance(length)
    }

    pub(super) fn advance(&mut self, length: u64) -> Read<()> {
        let rest = self.bytes.remaining_slice();
        let length = usize::try_from(length).map_err(|_| MessageError::Syntax)?;
        self.bytes = Bytes::new(rest.get(length..).ok_or(MessageError::Syntax)?);
        Ok(())
    }
}
