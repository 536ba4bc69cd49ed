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

/// What a view model would be requested with by a client that has just sent this update: with the update's `$headers` in place of
/// those of its last request (contract 6.3). `requested`: the argument of that, None for null. None: the update has no headers, or it is
/// not an object. It reads the whole update; who has many asks `may_have_headers` first.
pub fn renewed(requested: Option<&[u8]>, update: &[u8]) -> Option<Vec<u8>> {
    let headers = last_member(update, |name| json::eq(name, HEADERS))?;
    let requested = requested.unwrap_or_default();
    let mut renewed = Vec::from(*b"{");
    let mut keep = |name: &[u8], value: &[u8]| {
        renewed.push(b'"');
        renewed.extend_from_slice(name);
        renewed.extend_from_slice(b"\":");
        renewed.extend_from_slice(value);
        renewed.push(b',');
    };
    match last_member(requested, |name| json::eq(name, ARGUMENT)) {
        Some(argument) => keep(ARGUMENT.as_bytes(), argument.of(requested)),
        // Without `$vmArg`, whatever else there is is the argument (contract 1.3).
        None if json::kind(requested) == Some(ValueKind::Object) => {
            json::members(requested, |name, value| {
                if !json::eq(name.of(requested), HEADERS) {
                    keep(name.of(requested), value.of(requested));
                }
            });
        }
        None => {}
    }
    renewed.extend_from_slice(b"\"$headers\":");
    renewed.extend_from_slice(headers.of(update));
    renewed.push(b'}');
    Some(renewed)
}

const ARGUMENT: &str = "$vmArg";
const HEADERS: &str = "$headers";
const BEARER: &str = "Bearer ";

/// False: there is no such name in it. Written without escapes it has a dollar sign, and of all escapes only `\u` can stand for one
/// of its characters.
pub fn may_have_headers(argument: &[u8]) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};

    fn contents(argument: &str) -> Option<&str> {
        let found = authorization(argument.as_bytes())?;
        Some(core::str::from_utf8(found.contents.of(argument.as_bytes())).unwrap())
    }

    fn bearer(argument: &str) -> Option<String> {
        let mut buffer = Vec::from(*b"stale");
        authorization(argument.as_bytes())?.bearer(argument.as_bytes(), &mut buffer).map(str::to_string)
    }

    #[test]
    fn the_npm_clients_argument() {
        let argument = r#"{"$vmArg":{"Id":5,"Name":"é\"<"},"$headers":{"Authorization":"Bearer abc"}}"#;
        assert_eq!(contents(argument), Some("Bearer abc"));
        assert_eq!(bearer(argument).as_deref(), Some("abc"));
    }

    #[test]
    fn an_update_with_headers_renews_what_a_view_model_is_requested_with() {
        let renewed = |requested: Option<&str>, update: &str| {
            let renewed = renewed(requested.map(str::as_bytes), update.as_bytes());
            renewed.map(|renewed| String::from_utf8(renewed).unwrap())
        };
        let update = r#"{"$headers":{"Authorization":"Bearer new"},"Age":5}"#;
        let with = r#"{"$vmArg":{"Id":5},"$headers":{"Authorization":"Bearer new"}}"#;
        let without = r#"{"$headers":{"Authorization":"Bearer new"}}"#;
        let old = r#"{"$headers":{"Authorization":"Bearer old"},"$vmArg":{"Id":5}}"#;
        assert_eq!(renewed(Some(old), update).as_deref(), Some(with));
        assert_eq!(renewed(Some(r#"{"$headers":1}"#), update).as_deref(), Some(without));
        assert_eq!(renewed(None, update).as_deref(), Some(without));
        // What is not wrapped is the argument itself.
        let plain = renewed(Some(r#"{ "Id" : 5, "$headers": {"a":1}, "\u0041":[1, 2]}"#), update);
        assert_eq!(plain.as_deref(), Some(without.replacen('{', r#"{"Id":5,"\u0041":[1, 2],"#, 1).as_str()));
        assert_eq!(renewed(Some("[5]"), update).as_deref(), Some(without));
        for update in [r#"{"Age":5}"#, r#"{"a":{"$headers":1}}"#, "null", r#"["$headers"]"#] {
            assert_eq!(renewed(Some(old), update), None, "{update}");
        }
    }

    #[test]
    fn names_compare_as_the_contract_says() {
        for name in ["Authorization", "authorization", "AUTHORIZATION", r"\u0041uthorization"] {
            assert_eq!(contents(&format!(r#"{{"$headers":{{"{name}":"x"}}}}"#)), Some("x"), "{name}");
        }
        for name in [r"$headers", r"\u0024headers", r"$header\u0073"] {
            assert_eq!(contents(&format!(r#"{{"{name}":{{"Authorization":"x"}}}}"#)), Some("x"), "{name}");
        }
        for name in ["$Headers", "headers", "$headers2", "x$headers", r"\\u0024headers", "$vmArg"] {
            assert_eq!(contents(&format!(r#"{{"{name}":{{"Authorization":"x"}}}}"#)), None, "{name}");
        }
        assert_eq!(contents(r#"{"$headers":{"Authorization2":"x","X-Authorization":"x"}}"#), None);
    }

    #[test]
    fn only_its_place_counts() {
        for argument in [
            r#"{"Authorization":"x"}"#,
            r#"{"$vmArg":{"$headers":{"Authorization":"x"}}}"#,
            r#"{"a":"{\"$headers\":{\"Authorization\":\"x\"}}"}"#,
            r#"[{"$headers":{"Authorization":"x"}}]"#,
            r#"{"$headers":[{"Authorization":"x"}]}"#,
            r#"{"$headers":{"a":{"Authorization":"x"}}}"#,
            r#"{"$headers":"Authorization"}"#,
            r#"{"$headers":{"Authorization":null}}"#,
            r#"{"$headers":{"Authorization":["x"]}}"#,
            r#"{"$vmArg":null,"$headers":null}"#,
            r#"{"$headers":{}}"#,
            r#""$headers""#,
            "{}",
            "null",
            "",
            // Not JSON: no caller has such an argument.
            r#"{"$headers":{"Authorization":"x"}"#,
            r#"{"$headers":{"Authorization":"x}}"#,
            r#"{"$headers""#,
        ] {
            assert_eq!(contents(argument), None, "{argument}");
        }
        assert_eq!(contents(r#"{ "a" : 1 , "$headers" : { "b" : "c" , "Authorization" : "x y" } }"#), Some("x y"));
    }

    #[test]
    fn the_last_of_a_name_counts() {
        assert_eq!(contents(r#"{"$headers":{"Authorization":"x","authorization":"y"}}"#), Some("y"));
        assert_eq!(contents(r#"{"$headers":{"Authorization":"x"},"$headers":{"Authorization":"y"}}"#), Some("y"));
        assert_eq!(contents(r#"{"$headers":{"Authorization":"x"},"$headers":null}"#), None);
        assert_eq!(contents(r#"{"$headers":{"Authorization":"x","Authorization":1}}"#), None);
    }

    #[test]
    fn the_token_behind_the_scheme() {
        let token = |value: &str| bearer(&format!(r#"{{"$headers":{{"Authorization":"{value}"}}}}"#));
        for value in
            ["Bearer a.b.c", "bearer a.b.c", "BEARER   a.b.c  ", r"\u0042earer a\u002eb.c", r"Bearer\u0020a.b.c\t"]
        {
            assert_eq!(token(value).as_deref(), Some("a.b.c"), "{value}");
        }
        for value in ["", "Bearer", "Bearer ", "Bearer    ", "Basic abc", "Bearerabc", " Bearer abc", "Bearé x", "abc"]
        {
            assert_eq!(token(value), None, "{value}");
        }
        // Half of a surrogate pair is no character; the token is then one that nobody signed.
        assert_eq!(token(r"Bearer a\ud800").as_deref(), Some("a\u{fffd}"));
    }
}
