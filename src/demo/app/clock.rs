//! Time as .NET writes it in JSON: `2024-05-06T07:08:09.1234567Z`.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: i64 = 86_400;

/// UTC with up to seven fraction digits, trailing zeros cut, as Newtonsoft and System.Text.Json do.
pub fn iso(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() as i64;
    let (year, month, day) = civil(seconds.div_euclid(SECONDS_PER_DAY));
    let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
    let mut text =
        format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60);
    let ticks = since.subsec_nanos() / 100;
    if ticks > 0 {
        text.push_str(format!(".{ticks:07}").trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// `HH:mm:ss` UTC, for people.
pub fn of_day(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % SECONDS_PER_DAY as u64;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Reads `YYYY-MM-DDTHH:MM:SS[.f…][Z|±HH:MM]`; System.Text.Json takes up to 16 fraction digits.
pub fn parse(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let part = bytes.get(from..to)?;
        part.iter().try_fold(0i64, |value, digit| digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0')))
    };
    let at = |index: usize, expected: &[u8]| bytes.get(index).is_some_and(|byte| expected.contains(byte));
    if !(at(4, b"-") && at(7, b"-") && at(10, b"Tt") && at(13, b":") && at(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if year < 1 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = 19;
    let mut nanos = 0u32;
    if at(rest, b".") {
        let digits = bytes[rest + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=16).contains(&digits) {
            return None;
        }
        for place in 0..9 {
            let digit = if place < digits { bytes[rest + 1 + place] - b'0' } else { 0 };
            nanos = nanos * 10 + u32::from(digit);
        }
        rest += 1 + digits;
    }
    let offset = match &bytes[rest..] {
        b"" | b"Z" | b"z" => 0,
        zone if zone.len() == 6 && zone[3] == b':' => {
            let seconds = number(rest + 1, rest + 3)? * 3600 + number(rest + 4, rest + 6)? * 60;
            match zone[0] {
                b'+' => seconds,
                b'-' => -seconds,
                _ => return None,
            }
        }
        _ => return None,
    };
    let seconds = days(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - offset;
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base?.checked_add(Duration::from_nanos(u64::from(nanos)))
}

/// Days since 1970-01-01 to a Gregorian date. Years are counted from March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_it_reads() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2024-02-29T23:59:59.1234567Z",
            "2000-03-01T00:00:00.5Z",
            "2025-12-31T12:00:00.0000001Z",
        ] {
            assert_eq!(iso(parse(text).unwrap()), text);
        }
    }

    #[test]
    fn zones_and_malformed_texts() {
        assert_eq!(parse("2024-05-06T07:08:09+00:00"), parse("2024-05-06T09:08:09+02:00"));
        for text in [
            "",
            "null",
            "2024-05-06",
            "2024-13-06T07:08:09Z",
            "2024-05-06T07:08:09.Z",
            "2024-05-06T07:08:09+2",
            "2024-05-06T07:08:09é",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
