//! The `$headers` that a client puts into a `Request_VM` or `Update_VM` (contract 1.3): the only way a dotNetify client has to show
//! an app server a token that goes through a proxy (contract 4.7).
use crate::proto::signalr::Span;
use crate::proto::signalr::json::{self, ValueKind};
use alloc::vec::Vec;

/// The value of the `Authorization` header: the contents of a JSON string (between its quotes, escapes untouched) inside the
/// argument it was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authorization {
    pub contents: Span,
}

/// Looks for `$headers` -> `Authorization` in a request's argument, its raw JSON text. The name `$headers` is exact as the app
/// server's is, that of the header ignores case; both may be written with escapes. A name that is there twice counts the last time,
/// as with the app server's parsers. None for anything else, also for text that is not JSON.
///
/// An argument without `$headers` costs a search for two bytes, since most are like that.
pub fn authorization(argument: &[u8]) -> Option<Authorization> {
    if !may_have_headers(argument) {
        return None;
    }
    let headers = last_member(argument, |name| json::eq(name, HEADERS))?;
    let value = last_member(headers.of(argument), |name| json::eq_ignore_case(name, "Authorization"))?;
    let start = headers.start + value.start;
    match Span::new(start as usize, (headers.start + value.end) as usize).of(argument) {
        [b'"', contents @ .., b'"'] => {
            let start = start as usize + 1;
            Some(Authorization { contents: Span::new(start, start + contents.len()) })
        }
        _ => None,
    }
}

impl Authorization {
    /// The token of a bearer authorization, without the white space around it; None for another scheme or an empty token.
    /// `argument` is what was searched; `buffer` is overwritten if the value has escapes, which no token needs.
    pub fn bearer<'a>(self, argument: &'a [u8], buffer: &'a mut Vec<u8>) -> Option<&'a str> {
        let mut value = self.contents.of(argument);
        if value.contains(&b'\\') {
            buffer.clear();
            json::unescape(value, buffer);
            value = buffer;
        }
        // RFC 9110 section 11.1: the scheme ignores case. ASP.NET's JwtBearer wants the one space and trims the rest.
        let value = core::str::from_utf8(value).ok()?;
        let (scheme, token) = value.split_at_checked(BEARER.len())?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case(BEARER) && !token.is_empty()).then_some(token)
    }
}

const HEADERS: &str = "$headers";
const BEARER: &str = "Bearer ";

/// False: there is no such name in it. Written without escapes it has a dollar sign, and of all escapes only `\u` can stand for one
/// of its characters.
fn may_have_headers(argument: &[u8]) -> bool {
    memchr::memchr2_iter(b'$', b'\\', argument).any(|at| {
        let rest = &argument[at..];
        rest.starts_with(b"\\u") || rest.starts_with(HEADERS.as_bytes())
    })
}

/// Where in `object` the value of the last member with such a name is; None also if it is not an object.
fn last_member(object: &[u8], is_meant: impl Fn(&[u8]) -> bool) -> Option<Span> {
    if json::kind(object) != Some(ValueKind::Object) {
        return None;
    }
    let mut found = None;
    json::members(object, |name, value| {
        if is_meant(name.of(object)) {
            found = Some(value);
        }
    })?;
    found
}
