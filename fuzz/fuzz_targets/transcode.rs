#![no_main]
//! MessagePack values as JSON text, against `rmpv` and serde_json. The bytes are taken for a MessagePack value, and for a JSON value
//! that `rmpv` then encodes. What becomes text must say what `rmpv` reads, in its order; what does not must have no JSON.
//!
//! The oracle stands here and not in `signalring::fuzzing`, because the product does not depend on `rmpv`.
use rmpv::Value;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use signalring::limits::JSON_DEPTH_MAX;
use signalring::proto::signalr::transcode::{TranscodeError, to_json};
use std::fmt;

/// An invocation's argument stands inside two arrays.
const DEPTH_MAX: u32 = JSON_DEPTH_MAX - 2;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    check(data);
    if let Ok(json) = serde_json::from_slice(data) {
        let mut encoded = Vec::new();
        rmpv::encode::write_value(&mut encoded, &from_json(&json)).expect("a vector takes all");
        check(&encoded);
    }
});

fn check(data: &[u8]) {
    let mut text = Vec::new();
    let result = to_json(data, &mut text);
    let mut rest = data;
    let value = rmpv::decode::read_value_with_max_depth(&mut rest, 8 * DEPTH_MAX as usize);
    match (result, value) {
        (Ok(()), Ok(value)) => {
            assert!(rest.is_empty() && has_json(&value, 0));
            let text: &RawValue = serde_json::from_slice(&text).expect("a value becomes JSON");
            assert!(says(text.get(), &value), "{value} became {text}");
        }
        (Ok(()), Err(error)) => panic!("{error}: {}", String::from_utf8_lossy(&text)),
        (Err(error), Ok(value)) => {
            assert!(text.is_empty());
            // `rmpv` takes 0xC1, which is never used, for nil.
            let is_excused = error == TranscodeError::Syntax && data.contains(&0xc1);
            assert!(!rest.is_empty() || is_excused || !has_json(&value, 0), "{error:?}: {value}");
        }
        (Err(_), Err(_)) => assert!(text.is_empty()),
    }
}

fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(value) => Value::Boolean(*value),
        serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().expect("a float").into(),
        },
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Array(items) => Value::Array(items.iter().map(from_json).collect()),
        serde_json::Value::Object(members) => {
            Value::Map(members.iter().map(|(name, value)| (name.as_str().into(), from_json(value))).collect())
        }
    }
}

fn has_json(value: &Value, depth: u32) -> bool {
    match value {
        Value::Nil | Value::Boolean(_) | Value::Integer(_) | Value::Binary(_) => true,
        Value::F32(number) => number.is_finite(),
        Value::F64(number) => number.is_finite(),
        Value::String(text) => text.is_str(),
        Value::Ext(kind, data) => *kind == -1 && seconds_and_nanoseconds(data).is_some(),
        Value::Array(items) => depth < DEPTH_MAX && items.iter().all(|item| has_json(item, depth + 1)),
        Value::Map(pairs) => {
            let is_key = |key: &Value| {
                let is_wrong =
                    matches!(key, Value::Nil | Value::Binary(_) | Value::Ext(..) | Value::Array(_) | Value::Map(_));
                !is_wrong && has_json(key, depth)
            };
            depth < DEPTH_MAX && pairs.iter().all(|(key, value)| is_key(key) && has_json(value, depth + 1))
        }
    }
}

/// Of a timestamp in .NET's years 0001 to 9999.
fn seconds_and_nanoseconds(data: &[u8]) -> Option<(i64, u32)> {
    let number = data.iter().fold(0u128, |number, &byte| number << 8 | u128::from(byte));
    let (seconds, nanoseconds) = match data.len() {
        4 => (number as i64, 0),
        8 => ((number % (1 << 34)) as i64, (number >> 34) as u32),
        12 => (number as u64 as i64, (number >> 64) as u32),
        _ => return None,
    };
    let is_sensible = nanoseconds < 1_000_000_000 && (-62_135_596_800..253_402_300_800).contains(&seconds);
    is_sensible.then_some((seconds, nanoseconds))
}

/// Whether a JSON value's text says what the value is. Numbers are compared by what the standard library reads, which is exact.
fn says(text: &str, value: &Value) -> bool {
    let string = || serde_json::from_str::<String>(text).expect("a string");
    match value {
        Value::Nil => text == "null",
        Value::Boolean(value) => text == value.to_string(),
        Value::Integer(number) => text == number.to_string(),
        Value::F32(number) => text.parse::<f32>().is_ok_and(|found| found.to_bits() == number.to_bits()),
        Value::F64(number) => text.parse::<f64>().is_ok_and(|found| found.to_bits() == number.to_bits()),
        Value::String(expected) => Some(string().as_str()) == expected.as_str(),
        Value::Binary(bytes) => unbase64(&string()) == *bytes,
        Value::Ext(_, data) => {
            let (seconds, nanoseconds) = seconds_and_nanoseconds(data).expect("a timestamp");
            // .NET counts in 100 ns.
            from_iso(&string()) == (seconds, nanoseconds / 100 * 100)
        }
        Value::Array(expected) => {
            let items: Vec<&RawValue> = serde_json::from_str(text).expect("an array");
            items.len() == expected.len() && items.iter().zip(expected).all(|(item, value)| says(item.get(), value))
        }
        Value::Map(expected) => {
            let Pairs(pairs) = serde_json::from_str(text).expect("an object");
            let is_same = |((name, item), (key, value)): (&(String, &RawValue), &(Value, Value))| {
                // A key that is no string is the string of its text.
                key.as_str().map_or_else(|| says(name, key), |key| name == key) && says(item.get(), value)
            };
            pairs.len() == expected.len() && pairs.iter().zip(expected).all(is_same)
        }
    }
}

/// `2024-01-02T03:04:05.125Z`, with days counted year by year.
fn from_iso(text: &str) -> (i64, u32) {
    let (whole, rest) = text.split_at(19);
    let part = |range: std::ops::Range<usize>| whole[range].parse::<i64>().expect("digits");
    let leap_years_before = |year: i64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    let (year, month, day) = (part(0..4), part(5..7), part(8..10));
    let is_leap = leap_years_before(year + 1) > leap_years_before(year);
    let months = [31, 28 + i64::from(is_leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let day_of_year = months[..month as usize - 1].iter().sum::<i64>() + day - 1;
    let days = (year - 1970) * 365 + leap_years_before(year) - leap_years_before(1970) + day_of_year;
    let seconds = days * 86_400 + part(11..13) * 3600 + part(14..16) * 60 + part(17..19);
    let fraction = rest.strip_suffix('Z').expect("UTC");
    assert!(fraction.is_empty() || (fraction.starts_with('.') && fraction.len() > 1 && !fraction.ends_with('0')));
    let digits = fraction.trim_start_matches('.');
    (seconds, format!("{digits:0<9}").parse().expect("digits"))
}

fn unbase64(text: &str) -> Vec<u8> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    assert!(text.len().is_multiple_of(4));
    let digits = text.trim_end_matches('=');
    let mut bits = Vec::new();
    for digit in digits.chars() {
        let digit = ALPHABET.find(digit).expect("a digit");
        bits.extend((0..6).rev().map(|shift| digit >> shift & 1));
    }
    bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | *bit as u8)).collect()
}

/// An object's members as they stand, duplicates included.
struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
