//! What an app server sends over a lane (contract 3): `Response_VM [method, args, metadata]` as a closed enum, and the frame a
//! client gets for it.
use crate::limits::RECIPIENT_BYTES_MAX;
use crate::proto::signalr::json::{self, Scanner, ValueKind};
use crate::proto::signalr::msgpack::{self, write};
use crate::proto::signalr::record::RECORD_SEPARATOR;
use crate::proto::signalr::{Kind, Message, Protocol, Span, transcode};
use alloc::vec::Vec;

/// Who is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipients {
    /// One origin id: the contents of the JSON string, or of a MessagePack lane's str. Both are read alike, for an origin id is ours
    /// and has no backslash.
    One(Span),
    /// Contents of a JSON string that itself holds a JSON array (escaped once more), e.g. `[\"a\",\"b\",null]`.
    /// Also where metadata holds a real JSON array instead of a string (be lenient).
    Many(Span),
}

/// Spans are into the record of the lane.
///
/// JSON lane: `vm` and `data` are whole raw JSON values (strings with quotes), to be copied verbatim; `group` is the contents of a
/// JSON string; a list of users is raw JSON. MessagePack lane: `vm`, `data` and `group` are the contents of str; a list of users is
/// the encoded array, which `each_recipient` reads as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Send {
        to: Recipients,
        vm: Span,
        data: Span,
    },
    SendToMany {
        to: Recipients,
        vm: Span,
        data: Span,
    },
    SendToGroup {
        group: Span,
        vm: Span,
        data: Span,
    },
    SendToGroupExcept {
        group: Span,
        except: Option<Recipients>,
        vm: Span,
        data: Span,
    },
    /// `users`: the raw JSON array of user ids, if it was an argument; else None and `listed` has metadata's.
    SendToUsers {
        users: Option<Span>,
        listed: Option<Recipients>,
        vm: Span,
        data: Span,
    },
    AddToGroup {
        group: Span,
        who: Recipients,
    },
    RemoveFromGroup {
        group: Span,
        who: Recipients,
    },
    /// A two-element array: a response to the lane itself. Ignored and counted.
    ToLane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// Not `Response_VM` with one array argument.
    NotAResponse,
    UnknownMethod,
    /// Arguments or metadata not of the method's form.
    Shape,
}

/// Reads an Invocation that came over a lane of `protocol`, whose record it is.
pub fn parse(protocol: Protocol, record: &[u8], message: &Message) -> Result<Delivery, ResponseError> {
    match protocol {
        Protocol::Json => read::<Json>(record, message),
        Protocol::MessagePack => read::<MessagePack>(record, message),
    }
}

/// Calls `f` with each listed origin id (None for a JSON null). Ids longer than RECIPIENT_BYTES_MAX, or not strings, are passed over.
/// No allocation. Tolerates every legal escaping (`\"`, `\u0022`, `\\u002B`...).
///
/// Takes every form a `Recipients` may have, and `Many` of a `users` argument. A text that is not an array after all lists nobody;
/// one that is cut lists those before the cut.
pub fn each_recipient(record: &[u8], recipients: Recipients, mut f: impl FnMut(Option<&[u8]>)) {
    match recipients {
        Recipients::One(span) => {
            let mut id = Id::default();
            json::unescape_chunks(span.of(record), |chunk| id.push(chunk));
            id.give(&mut f);
        }
        Recipients::Many(span) => {
            let list = span.of(record);
            // No JSON text, escaped or not, starts with a byte over 0x7F; every encoded MessagePack array does.
            if list.first().is_some_and(|first| !first.is_ascii()) {
                each_encoded(list, f);
            } else {
                List::new(list).each(f);
            }
        }
    }
}

/// Appends the record for a client of protocol `to`: `{"type":1,"target":"Response_VM","arguments":[[<vm>,<data>]]}` or
/// `[1, {}, nil, "Response_VM", [[vm, data]], []]` (contract 1.4). `vm` and `data` are as a `Delivery` of a lane of protocol `from`
/// has them.
///
/// From JSON to JSON both are copied verbatim. A MessagePack client gets two str in any case, for it parses the text: from a JSON
/// lane's string its text, from anything else its JSON text.
pub fn write_client(from: Protocol, to: Protocol, vm: &[u8], data: &[u8], out: &mut Vec<u8>) {
    match to {
        Protocol::Json => {
            let value = |value: &[u8], out: &mut Vec<u8>| match from {
                Protocol::Json => out.extend_from_slice(value),
                Protocol::MessagePack => {
                    out.push(b'"');
                    json::escape(value, out);
                    out.push(b'"');
                }
            };
            out.extend_from_slice(CLIENT_HEAD);
            value(vm, out);
            out.push(b',');
            value(data, out);
            out.extend_from_slice(CLIENT_TAIL);
        }
        Protocol::MessagePack => write_message_pack(out, |out| {
            for value in [vm, data] {
                match from {
                    Protocol::Json => transcode::to_text(value, out),
                    Protocol::MessagePack => write::text(value, out),
                }
            }
        }),
    }
}

/// Appends an error `Response_VM` for a client of protocol `to`: data = `{"ExceptionType":"<type>","Message":"<message>"}` as JSON
/// text in a string (contract 1.4). `vm_id` is a raw JSON string with its quotes, as `Request::vm_id` has it for every client.
pub fn write_exception(to: Protocol, vm_id: &[u8], exception_type: &str, message: &str, out: &mut Vec<u8>) {
    match to {
        Protocol::Json => {
            out.extend_from_slice(CLIENT_HEAD);
            out.extend_from_slice(vm_id);
            out.extend_from_slice(b",\"{\\\"ExceptionType\\\":\\\"");
            // Escaped for the inner text, and that text for the string it stands in.
            json::escape_chunks(exception_type.as_bytes(), |chunk| json::escape(chunk, out));
            out.extend_from_slice(b"\\\",\\\"Message\\\":\\\"");
            json::escape_chunks(message.as_bytes(), |chunk| json::escape(chunk, out));
            out.extend_from_slice(b"\\\"}\"");
            out.extend_from_slice(CLIENT_TAIL);
        }
        Protocol::MessagePack => write_message_pack(out, |out| {
            transcode::to_text(vm_id, out);
            write::text_with(out, |out| {
                out.extend_from_slice(b"{\"ExceptionType\":\"");
                json::escape(exception_type.as_bytes(), out);
                out.extend_from_slice(b"\",\"Message\":\"");
                json::escape(message.as_bytes(), out);
                out.extend_from_slice(b"\"}");
            });
        }),
    }
}

/// Appends what dotNetify answers to the request of a view model it does not know (contract 5.1); `ending` follows the name.
pub fn write_unknown_vm(to: Protocol, vm_id: &[u8], ending: &str, out: &mut Vec<u8>) {
    const BEFORE: &[u8] = b"{\"ExceptionType\":\"Exception\",\"Message\":\"[dotNetify] ERROR: '";
    // A JSON string's contents are those of another's.
    let name = vm_id.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or_default();
    let parts = [BEFORE, name, b"' ", ending.as_bytes(), b"\"}"];
    match to {
        Protocol::Json => {
            out.extend_from_slice(CLIENT_HEAD);
            out.extend_from_slice(vm_id);
            out.extend_from_slice(b",\"");
            parts.into_iter().for_each(|part| json::escape(part, out));
            out.push(b'"');
            out.extend_from_slice(CLIENT_TAIL);
        }
        Protocol::MessagePack => write_message_pack(out, |out| {
            transcode::to_text(vm_id, out);
            write::text_with(out, |out| parts.into_iter().for_each(|part| out.extend_from_slice(part)));
        }),
    }
}

/// `[1, {}, nil, "Response_VM", [[vm, data]], []]`, of which `f` appends vm and data.
fn write_message_pack(out: &mut Vec<u8>, f: impl FnOnce(&mut Vec<u8>)) {
    msgpack::write_record(out, |out| {
        write::array_len(6, out);
        write::uint(1, out);
        write::map_len(0, out);
        write::nil(out);
        write::text(TARGET.as_bytes(), out);
        write::array_len(1, out);
        write::array_len(2, out);
        f(out);
        write::array_len(0, out);
    });
}

const TARGET: &str = "Response_VM";
const CLIENT_HEAD: &[u8] = b"{\"type\":1,\"target\":\"Response_VM\",\"arguments\":[[";
const CLIENT_TAIL: &[u8] = b"]]}\x1e";
const _: () = assert!(CLIENT_TAIL[CLIENT_TAIL.len() - 1] == RECORD_SEPARATOR);

/// The metadata key that says whom a response is for.
const CONNECTION_ID_KEY: &str = "$fwdConnId";

/// How a lane's protocol shows arrays, maps and strings. All spans are into the record.
trait Format {
    /// Reads the one argument of a `Response_VM`; None if it is not an array.
    fn envelope(record: &[u8], array: Span) -> Option<Envelope>;
    /// Calls `f` for each item of the array at `array`.
    fn elements(record: &[u8], array: Span, f: impl FnMut(Span)) -> Option<u32>;
    /// Calls `f` with the contents of each key, and each value, of the map at `map`.
    fn members(record: &[u8], map: Span, f: impl FnMut(Span, Span)) -> Option<u32>;
    /// The contents of a string.
    fn text(record: &[u8], value: Span) -> Option<Span>;
    /// A value that goes to the client as it is, in the form `Delivery` says.
    fn copied(record: &[u8], value: Span) -> Option<Span>;
    fn is_null(record: &[u8], value: Span) -> bool;
    fn is_target(contents: &[u8], name: &str) -> bool;
    fn first_character(contents: &[u8]) -> Option<char>;
}

struct Json;

impl Format for Json {
    /// In one walk: the data in it is by far the most of the record, and has been scanned once already.
    fn envelope(record: &[u8], array: Span) -> Option<Envelope> {
        let mut envelope = Envelope::default();
        let mut scanner = Scanner::new(array.of(record));
        scanner
            .array(|scanner| {
                let is_arguments = envelope.outer.count == 1 && scanner.peek() == Some(b'[');
                let item = if is_arguments {
                    let arguments = envelope.arguments.insert(Items::default());
                    scanner.array(|scanner| {
                        arguments.push(inside(array, scanner.value(2)?));
                        Ok(())
                    })?;
                    Span::default()
                } else {
                    inside(array, scanner.value(1)?)
                };
                envelope.outer.push(item);
                Ok(())
            })
            .ok()?;
        Some(envelope)
    }
    fn elements(record: &[u8], array: Span, mut f: impl FnMut(Span)) -> Option<u32> {
        json::elements(array.of(record), |element| f(inside(array, element)))
    }
    fn members(record: &[u8], map: Span, mut f: impl FnMut(Span, Span)) -> Option<u32> {
        json::members(map.of(record), |name, value| f(inside(map, name), inside(map, value)))
    }
    fn text(record: &[u8], value: Span) -> Option<Span> {
        let is_string = json::kind(value.of(record)) == Some(ValueKind::String);
        is_string.then(|| Span { start: value.start + 1, end: value.end - 1 })
    }
    fn copied(_: &[u8], value: Span) -> Option<Span> {
        Some(value)
    }
    fn is_null(record: &[u8], value: Span) -> bool {
        json::kind(value.of(record)) == Some(ValueKind::Null)
    }
    fn is_target(contents: &[u8], name: &str) -> bool {
        json::eq_ignore_case(contents, name)
    }
    fn first_character(contents: &[u8]) -> Option<char> {
        match *contents.first()? {
            b'\\' => json::unescape_one(contents).0,
            first => Some(first as char),
        }
    }
}

struct MessagePack;

impl Format for MessagePack {
    fn envelope(record: &[u8], array: Span) -> Option<Envelope> {
        let mut envelope = Envelope::default();
        Self::elements(record, array, |item| envelope.outer.push(item))?;
        if let Some(&arguments) = envelope.outer.items().get(1) {
            let mut items = Items::default();
            envelope.arguments = Self::elements(record, arguments, |item| items.push(item)).map(|_| items);
        }
        Some(envelope)
    }
    fn elements(record: &[u8], array: Span, mut f: impl FnMut(Span)) -> Option<u32> {
        msgpack::elements(array.of(record), |element| f(inside(array, element)))
    }
    fn members(record: &[u8], map: Span, mut f: impl FnMut(Span, Span)) -> Option<u32> {
        msgpack::members(map.of(record), |key, value| {
            // A key that is not a str is none of ours.
            if let Some(key) = Self::text(record, inside(map, key)) {
                f(key, inside(map, value));
            }
        })
    }
    fn text(record: &[u8], value: Span) -> Option<Span> {
        msgpack::text(value.of(record)).map(|contents| inside(value, contents))
    }
    fn copied(record: &[u8], value: Span) -> Option<Span> {
        Self::text(record, value)
    }
    fn is_null(record: &[u8], value: Span) -> bool {
        msgpack::is_nil(value.of(record))
    }
    fn is_target(contents: &[u8], name: &str) -> bool {
        contents.eq_ignore_ascii_case(name.as_bytes())
    }
    fn first_character(contents: &[u8]) -> Option<char> {
        contents.first().map(|&first| first as char)
    }
}

/// A span relative to `outer`, made relative to the record.
fn inside(outer: Span, inner: Span) -> Span {
    Span { start: outer.start + inner.start, end: outer.start + inner.end }
}

fn read<F: Format>(record: &[u8], message: &Message) -> Result<Delivery, ResponseError> {
    let target = message.target.filter(|target| F::is_target(target.of(record), TARGET));
    if message.kind != Kind::Invocation || target.is_none() || message.arguments.count != 1 {
        return Err(ResponseError::NotAResponse);
    }
    let envelope = F::envelope(record, message.arguments.spans[0]).ok_or(ResponseError::NotAResponse)?;
    let (method, metadata) = match *envelope.outer.items() {
        [_, _] => return Ok(Delivery::ToLane),
        [method, _, metadata] => (method, metadata),
        _ => return Err(ResponseError::Shape),
    };
    let arguments = envelope.arguments.ok_or(ResponseError::Shape)?;
    let method = F::text(record, method).ok_or(ResponseError::Shape)?;
    let method = Method::named::<F>(method.of(record)).ok_or(ResponseError::UnknownMethod)?;
    delivery::<F>(record, method, arguments.items(), metadata).ok_or(ResponseError::Shape)
}

/// The methods of contract 3.2. What a peer names is looked up here and nowhere else.
#[derive(Clone, Copy)]
enum Method {
    AddToGroup,
    RemoveFromGroup,
    Send,
    SendToMany,
    SendToGroup,
    SendToGroupExcept,
    SendToUsers,
}

impl Method {
    fn named<F: Format>(name: &[u8]) -> Option<Method> {
        const NAMES: [(&str, Method); 7] = [
            ("SendAsync", Method::Send),
            ("SendToManyAsync", Method::SendToMany),
            ("SendToGroupAsync", Method::SendToGroup),
            ("SendToGroupExceptAsync", Method::SendToGroupExcept),
            ("SendToUsersAsync", Method::SendToUsers),
            ("AddToGroupAsync", Method::AddToGroup),
            ("RemoveFromGroupAsync", Method::RemoveFromGroup),
        ];
        NAMES.iter().find(|(known, _)| F::is_target(name, known)).map(|&(_, method)| method)
    }
}

fn delivery<F: Format>(record: &[u8], method: Method, arguments: &[Span], metadata: Span) -> Option<Delivery> {
    let who = recipients::<F>(record, metadata)?;
    let text = |value| F::text(record, value);
    let copied = |value| F::copied(record, value);
    Some(match (method, arguments) {
        (Method::AddToGroup, &[group]) => Delivery::AddToGroup { group: text(group)?, who: who? },
        (Method::RemoveFromGroup, &[group]) => Delivery::RemoveFromGroup { group: text(group)?, who: who? },
        (Method::Send, &[vm, data]) => Delivery::Send { to: who?, vm: copied(vm)?, data: copied(data)? },
        (Method::SendToMany, &[vm, data]) => Delivery::SendToMany { to: who?, vm: copied(vm)?, data: copied(data)? },
        (Method::SendToGroup, &[group, vm, data]) => {
            Delivery::SendToGroup { group: text(group)?, vm: copied(vm)?, data: copied(data)? }
        }
        (Method::SendToGroupExcept, &[group, vm, data]) => {
            Delivery::SendToGroupExcept { group: text(group)?, except: who, vm: copied(vm)?, data: copied(data)? }
        }
        (Method::SendToUsers, &[users, vm, data]) => {
            // A first argument that is no array says nothing that metadata does not.
            let users = F::elements(record, users, |_| {}).map(|_| users);
            Delivery::SendToUsers { users, listed: who, vm: copied(vm)?, data: copied(data)? }
        }
        (Method::SendToUsers, &[vm, data]) => {
            Delivery::SendToUsers { users: None, listed: Some(who?), vm: copied(vm)?, data: copied(data)? }
        }
        _ => return None,
    })
}

/// Whom metadata names: `Some(None)` if nobody, None if it is not metadata. The original takes a string that starts with `[` for
/// a list (contract 3.1).
fn recipients<F: Format>(record: &[u8], metadata: Span) -> Option<Option<Recipients>> {
    if F::is_null(record, metadata) {
        return Some(None);
    }
    let mut named = None;
    F::members(record, metadata, |key, value| {
        let is_key = match F::first_character(key.of(record)) {
            Some('$') => F::is_target(key.of(record), CONNECTION_ID_KEY),
            _ => false,
        };
        if is_key {
            named = Some(value);
        }
    })?;
    let Some(value) = named.filter(|&value| !F::is_null(record, value)) else {
        return Some(None);
    };
    if let Some(contents) = F::text(record, value) {
        let is_list = F::first_character(contents.of(record)) == Some('[');
        return Some(Some(if is_list { Recipients::Many(contents) } else { Recipients::One(contents) }));
    }
    F::elements(record, value, |_| {})?;
    Some(Some(Recipients::Many(value)))
}

/// The items of the envelope, and those of its second one if that is an array too.
#[derive(Default)]
struct Envelope {
    outer: Items,
    arguments: Option<Items>,
}

/// The items of a short array.
#[derive(Default)]
struct Items {
    count: usize,
    spans: [Span; ITEMS_MAX],
}

/// No envelope and no method has more than three; the fourth tells that there are too many.
const ITEMS_MAX: usize = 4;

impl Items {
    fn push(&mut self, item: Span) {
        if let Some(kept) = self.spans.get_mut(self.count) {
            *kept = item;
            self.count += 1;
        }
    }

    fn items(&self) -> &[Span] {
        &self.spans[..self.count]
    }
}

/// An id that had to be put together from pieces.
struct Id {
    bytes: [u8; RECIPIENT_BYTES_MAX],
    /// None if it does not fit.
    length: Option<usize>,
}

impl Default for Id {
    fn default() -> Self {
        Id { bytes: [0; RECIPIENT_BYTES_MAX], length: Some(0) }
    }
}

impl Id {
    fn push(&mut self, chunk: &[u8]) {
        self.length = self.length.and_then(|length| {
            let end = length + chunk.len();
            self.bytes.get_mut(length..end)?.copy_from_slice(chunk);
            Some(end)
        });
    }

    fn give(&self, f: &mut impl FnMut(Option<&[u8]>)) {
        if let Some(length) = self.length {
            f(Some(&self.bytes[..length]));
        }
    }
}

fn each_encoded(list: &[u8], mut f: impl FnMut(Option<&[u8]>)) {
    msgpack::elements(list, |element| {
        let element = element.of(list);
        if msgpack::is_nil(element) {
            f(None);
        } else if let Some(id) = msgpack::text(element).filter(|id| id.of(element).len() <= RECIPIENT_BYTES_MAX) {
            f(Some(id.of(element)));
        }
    });
}

/// A JSON array's text, which may itself be the contents of a JSON string: then every character of it may be an escape.
struct List<'a> {
    rest: &'a [u8],
    /// The text is inside a string.
    escaped: bool,
}

impl<'a> List<'a> {
    fn new(text: &'a [u8]) -> Self {
        // Inside a string a quote never stands alone, and in plain text no backslash comes before the first quote. So the
        // first of the two tells which it is; with neither, both readings are the same.
        let escaped = memchr::memchr2(b'"', b'\\', text).is_some_and(|at| text[at] == b'\\');
        List { rest: text, escaped }
    }

    fn each(mut self, mut f: impl FnMut(Option<&[u8]>)) {
        if self.token() != Some('[') {
            return;
        }
        loop {
            match self.token() {
                Some(',') => {}
                Some('"') => {
                    if self.string(&mut f).is_none() {
                        return;
                    }
                }
                Some('n') => {
                    f(None);
                    if self.skip_word().is_none() {
                        return;
                    }
                }
                Some('[' | '{') => {
                    if self.skip_nested().is_none() {
                        return;
                    }
                }
                Some(']') | None => return,
                // A number or `true`: not an id.
                Some(_) => {
                    if self.skip_word().is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// The next character of the array's text.
    fn next(&mut self) -> Option<char> {
        let (character, used) = self.peek()?;
        self.rest = &self.rest[used..];
        Some(character)
    }

    /// The next character and the bytes it takes. A raw byte outside ASCII is given as one character of its own; it can only be
    /// part of something that is passed over, or be copied byte by byte.
    fn peek(&self) -> Option<(char, usize)> {
        match *self.rest.first()? {
            b'\\' if self.escaped => {
                let (character, used) = json::unescape_one(self.rest);
                Some((character.unwrap_or(char::REPLACEMENT_CHARACTER), used))
            }
            byte => Some((byte as char, 1)),
        }
    }

    /// The next character that is not white space.
    fn token(&mut self) -> Option<char> {
        loop {
            match self.next()? {
                ' ' | '\n' | '\r' | '\t' => {}
                character => return Some(character),
            }
        }
    }

    /// Reads a string whose quote has been read, and gives it out.
    fn string(&mut self, f: &mut impl FnMut(Option<&[u8]>)) -> Option<()> {
        // The usual case: nothing in it is escaped, and it can be given as it stands.
        let run = json::plain_run(self.rest);
        let quote: &[u8] = if self.escaped { b"\\\"" } else { b"\"" };
        if self.rest[run..].starts_with(quote) {
            if run <= RECIPIENT_BYTES_MAX {
                f(Some(&self.rest[..run]));
            }
            self.rest = &self.rest[run + quote.len()..];
            return Some(());
        }
        let mut id = Id::default();
        while let Piece::More = self.piece(&mut id)? {}
        id.give(f);
        Some(())
    }

    /// One character of a string, which is itself escaped as JSON.
    fn piece(&mut self, id: &mut Id) -> Option<Piece> {
        let raw = *self.rest.first()?;
        let character = self.next()?;
        match character {
            '"' => return Some(Piece::End),
            '\\' => {
                let character = self.inner_escape()?;
                id.push(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ if raw == b'\\' => id.push(character.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => id.push(&[raw]),
        }
        Some(Piece::More)
    }

    /// What follows an inner backslash: put together as ASCII, then read like any other escape.
    fn inner_escape(&mut self) -> Option<char> {
        // Twelve bytes hold the longest, a surrogate pair.
        let mut text = [b'\\'; 12];
        let mut length = self.escape_after_backslash(&mut text)?;
        if json::unescape_one(&text[..length]).0.is_none() {
            // Half a pair. Look ahead for the other half, and leave it there if it is none.
            let mut ahead = List { ..*self };
            if ahead.next() == Some('\\') {
                text[6] = b'\\';
                let second = ahead.escape_after_backslash(&mut text[6..])?;
                if json::unescape_one(&text[..6 + second]).0.is_some() {
                    length += second;
                    *self = ahead;
                }
            }
        }
        Some(json::unescape_one(&text[..length]).0.unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    /// Reads `uXXXX`, or the one character of another escape, behind the backslash that `text` starts with. Returns their length
    /// together.
    fn escape_after_backslash(&mut self, text: &mut [u8]) -> Option<usize> {
        let mut length = 1;
        while length < 2 || (text[1] == b'u' && length < 6) {
            let character = self.next()?;
            // Zero is no part of any escape.
            text[length] = if character.is_ascii() { character as u8 } else { 0 };
            length += 1;
        }
        Some(length)
    }

    /// Up to the comma or bracket that ends a bare word.
    fn skip_word(&mut self) -> Option<()> {
        loop {
            match self.peek()? {
                (',' | ']', _) => return Some(()),
                (_, used) => self.rest = &self.rest[used..],
            }
        }
    }

    /// Past the bracket that closes one that has been read.
    fn skip_nested(&mut self) -> Option<()> {
        let mut depth = 1u32;
        while depth > 0 {
            match self.token()? {
                '[' | '{' => depth += 1,
                ']' | '}' => depth -= 1,
                '"' => self.string(&mut |_| {})?,
                _ => {}
            }
        }
        Some(())
    }
}

enum Piece {
    More,
    End,
}
