//! Tests of one text against literals: what most filters are made of. They allocate nothing, and read a vmId as the client wrote it,
//! escapes and all.
use super::Facts;
use crate::proto::dotnetify::request::Call;
use crate::proto::signalr::json;

/// A variable that is a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    VmId,
    CallType,
    ConnectionId,
    User,
    Path,
}

impl Subject {
    pub fn named(name: &str) -> Option<Subject> {
        Some(match name {
            "vm_id" => Subject::VmId,
            "call_type" => Subject::CallType,
            "connection_id" => Subject::ConnectionId,
            "user" => Subject::User,
            "path" => Subject::Path,
            _ => return None,
        })
    }

    fn of<'a>(self, facts: &Facts<'a>) -> Text<'a> {
        match self {
            Subject::VmId => Text::of_json(facts.vm_id),
            Subject::CallType => Text::Plain(facts.call.name().as_bytes()),
            Subject::ConnectionId => Text::Plain(facts.connection_id.as_bytes()),
            Subject::User => Text::Plain(facts.user.unwrap_or_default().as_bytes()),
            Subject::Path => Text::Plain(facts.path.as_bytes()),
        }
    }
}

/// Whether a text equals, starts with... one of literals.
#[derive(Debug)]
pub enum Test {
    Equals(Subject, Box<[u8]>),
    /// `in [...]`
    IsOneOf(Subject, Box<[Box<[u8]>]>),
    StartsWith(Subject, Box<[u8]>),
    EndsWith(Subject, Box<[u8]>),
    Contains(Subject, Needle),
    /// Every test of `call_type` comes down to this: which calls pass, in the order of `Call::ALL`.
    Calls([bool; Call::ALL.len()]),
}

impl Test {
    /// A test of `call_type` has three possible answers, which are found out beforehand.
    pub fn settled(self) -> Test {
        let subject = match &self {
            Test::Equals(subject, _)
            | Test::IsOneOf(subject, _)
            | Test::StartsWith(subject, _)
            | Test::EndsWith(subject, _)
            | Test::Contains(subject, _) => *subject,
            Test::Calls(_) => return self,
        };
        if subject != Subject::CallType {
            return self;
        }
        Test::Calls(Call::ALL.map(|call| self.holds_for(Text::Plain(call.name().as_bytes()))))
    }

    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Test::Calls(calls) => Call::ALL.iter().zip(calls).any(|(&call, &passes)| passes && call == facts.call),
            Test::Equals(subject, _)
            | Test::IsOneOf(subject, _)
            | Test::StartsWith(subject, _)
            | Test::EndsWith(subject, _)
            | Test::Contains(subject, _) => self.holds_for(subject.of(facts)),
        }
    }

    fn holds_for(&self, text: Text<'_>) -> bool {
        match self {
            Test::Equals(_, literal) => text.equals(literal),
            Test::IsOneOf(_, literals) => literals.iter().any(|literal| text.equals(literal)),
            Test::StartsWith(_, literal) => text.starts_with(literal),
            Test::EndsWith(_, literal) => text.ends_with(literal),
            Test::Contains(_, needle) => text.contains(needle),
            Test::Calls(_) => false,
        }
    }
}

/// A literal to be found inside a text, with what the algorithm of Knuth, Morris and Pratt needs to find it in a text that comes in
/// pieces: for each length matched, how much of it stays matched when the next byte is another.
#[derive(Debug)]
pub struct Needle {
    literal: Box<str>,
    falls_back_to: Box<[u16]>,
}

impl Needle {
    pub fn new(literal: &str) -> Needle {
        let bytes = literal.as_bytes();
        let mut falls_back_to = vec![0_u16; bytes.len()];
        let mut matched = 0_usize;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = falls_back_to[matched - 1].into();
            }
            matched += usize::from(bytes[at] == bytes[matched]);
            // A literal is shorter than its filter.
            falls_back_to[at] = u16::try_from(matched).unwrap_or(u16::MAX);
        }
        Needle { literal: literal.into(), falls_back_to: falls_back_to.into() }
    }
}

#[derive(Clone, Copy)]
enum Text<'a> {
    Plain(&'a [u8]),
    /// Contents of a JSON string.
    Escaped(&'a [u8]),
}

impl<'a> Text<'a> {
    /// Of a raw JSON string.
    fn of_json(raw: &'a [u8]) -> Text<'a> {
        let contents = super::contents(raw);
        match memchr::memchr(b'\\', contents) {
            None => Text::Plain(contents),
            Some(_) => Text::Escaped(contents),
        }
    }

    fn equals(self, literal: &[u8]) -> bool {
        match self {
            Text::Plain(text) => text == literal,
            Text::Escaped(contents) => begins(contents, literal) == Some(0),
        }
    }

    fn starts_with(self, literal: &[u8]) -> bool {
        match self {
            Text::Plain(text) => text.starts_with(literal),
            Text::Escaped(contents) => begins(contents, literal).is_some(),
        }
    }

    fn ends_with(self, literal: &[u8]) -> bool {
        let contents = match self {
            Text::Plain(text) => return text.ends_with(literal),
            Text::Escaped(contents) => contents,
        };
        let mut length = 0;
        json::unescape_chunks(contents, |chunk| length += chunk.len());
        let Some(mut before) = length.checked_sub(literal.len()) else { return false };
        let mut rest = literal;
        let mut equal = true;
        json::unescape_chunks(contents, |chunk| {
            let skipped = before.min(chunk.len());
            before -= skipped;
            let (now, later) = rest.split_at(chunk.len() - skipped);
            equal &= chunk[skipped..] == *now;
            rest = later;
        });
        equal
    }

    fn contains(self, needle: &Needle) -> bool {
        let literal = needle.literal.as_bytes();
        let contents = match self {
            Text::Plain(text) => return memchr::memmem::find(text, literal).is_some(),
            Text::Escaped(contents) => contents,
        };
        let mut matched = 0;
        json::unescape_chunks(contents, |chunk| {
            for byte in chunk {
                if matched == literal.len() {
                    return;
                }
                while matched > 0 && *byte != literal[matched] {
                    matched = needle.falls_back_to[matched - 1].into();
                }
                matched += usize::from(*byte == literal[matched]);
            }
        });
        matched == literal.len()
    }
}

/// How many bytes follow `literal` in the text of a JSON string's contents; None if it does not start with it.
fn begins(contents: &[u8], literal: &[u8]) -> Option<usize> {
    let mut rest = Some(literal);
    let mut following = 0;
    json::unescape_chunks(contents, |chunk| {
        let Some(expected) = rest else { return };
        let compared = expected.len().min(chunk.len());
        rest = (expected[..compared] == chunk[..compared]).then(|| &expected[compared..]);
        following += chunk.len() - compared;
    });
    rest.filter(|rest| rest.is_empty()).map(|_| following)
}
