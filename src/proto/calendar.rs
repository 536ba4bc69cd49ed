//! Dates of the proleptic Gregorian calendar in UTC, counted without leap seconds, as .NET and JavaScript do.

/// The seconds since 1970 that have a date: the years 0001 to 9999, which are all that .NET's `DateTime` has.
pub const SECONDS: core::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Length of `2024-05-06T07:08:09`.
pub const DATE_TIME_BYTES: usize = 19;

/// `2024-05-06T07:08:09`. A second outside of `SECONDS` is taken for the nearest one inside.
pub fn date_time(seconds_since_1970: i64) -> [u8; DATE_TIME_BYTES] {
    const SECONDS_PER_DAY: i64 = 86_400;
    let seconds = seconds_since_1970.clamp(*SECONDS.start(), *SECONDS.end());
    let second_of_day = seconds.rem_euclid(SECONDS_PER_DAY) as u64;
    let (year, month, day) = civil_date(seconds.div_euclid(SECONDS_PER_DAY));
    let mut text = *b"0000-00-00T00:00:00";
    put_digits(year, &mut text[0..4]);
    put_digits(month, &mut text[5..7]);
    put_digits(day, &mut text[8..10]);
    put_digits(second_of_day / 3600, &mut text[11..13]);
    put_digits(second_of_day / 60 % 60, &mut text[14..16]);
    put_digits(second_of_day % 60, &mut text[17..19]);
    text
}

/// The last digits of `number`, as many as there is room for.
pub fn put_digits(mut number: u64, room: &mut [u8]) {
    for digit in room.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01; none before 0000-03-01.
///
/// Years are counted from 1 March, which puts the leap day at the year's end: then month lengths follow one formula (153 days
/// in five months), and 400 years are always 146 097 days.
fn civil_date(days_since_1970: i64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    let days = (days_since_1970 + 719_468) as u64;
    let day_of_era = days % DAYS_OF_400_YEARS;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = days / DAYS_OF_400_YEARS * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_dotnets_calendar_follows_the_one_before() {
        let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let days_of = |year, month| match month {
            2 => 28 + u64::from(is_leap(year)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let (mut year, mut month, mut day) = (1, 1, 1);
        for days in SECONDS.start() / 86_400..=SECONDS.end() / 86_400 {
            assert_eq!(civil_date(days), (year, month, day));
            day += 1;
            if day > days_of(year, month) {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (10_000, 1, 1));
    }

    #[test]
    fn seconds_before_1970_and_beyond_the_calendar() {
        for (seconds, text) in [
            (0, b"1970-01-01T00:00:00"),
            (-1, b"1969-12-31T23:59:59"),
            (-86_401, b"1969-12-30T23:59:59"),
            (*SECONDS.start(), b"0001-01-01T00:00:00"),
            (*SECONDS.end(), b"9999-12-31T23:59:59"),
            (i64::MIN, b"0001-01-01T00:00:00"),
            (i64::MAX, b"9999-12-31T23:59:59"),
        ] {
            assert_eq!(&date_time(seconds), text);
        }
    }
}
