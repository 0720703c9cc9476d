//! Sizes and times as people write and read them.

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// `512 MiB`, `1.5 GiB`: binary units, at most one decimal.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && n >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    // In tenths of the unit, rounded half up; u128 because of the factor 10.
    let one = 1u128 << (10 * unit);
    let tenths = (u128::from(n) * 10 + one / 2) / one;
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

/// `512`, `512M`, `512MiB`, `2G`: in MiB.
pub fn parse_mib(text: &str) -> Result<u64, String> {
    parse_units(text, &[("", 1), ("M", 1), ("G", 1 << 10), ("T", 1 << 20)])
}

/// `20`, `20G`, `20GiB`, `1T`: in GiB.
pub fn parse_gib(text: &str) -> Result<u64, String> {
    parse_units(text, &[("", 1), ("G", 1), ("T", 1 << 10)])
}

fn parse_units(text: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let letter = suffix
        .strip_suffix("iB")
        .or(suffix.strip_suffix('B'))
        .unwrap_or(suffix);
    let factor = units
        .iter()
        .find(|(unit, _)| unit.eq_ignore_ascii_case(letter));
    let (Ok(number), Some((_, factor))) = (number.parse::<u64>(), factor) else {
        let known: Vec<_> = units
            .iter()
            .map(|(unit, _)| *unit)
            .filter(|u| !u.is_empty())
            .collect();
        return Err(format!(
            "expected a whole number, plain or with one of {}",
            known.join(", ")
        ));
    };
    number
        .checked_mul(*factor)
        .ok_or_else(|| "too large".to_owned())
}

/// How long ago: `12s`, `5m`, `3h`, `8d`; `-` when unset.
pub fn age(time: Option<&Timestamp>) -> String {
    let Some(time) = time else {
        return "-".to_owned();
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    duration(now.saturating_sub(u64::try_from(time.seconds).unwrap_or(0)))
}

/// The greatest unit that fits.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The whole time, and how long ago that is.
pub fn time_and_age(time: Option<&Timestamp>) -> String {
    match time {
        Some(at) => format!("{} ({} ago)", Timestamp { nanos: 0, ..*at }, age(time)),
        None => "-".to_owned(),
    }
}

/// `INSTANCE_STATE_SHUTTING_DOWN` of an enum with the prefix `INSTANCE_STATE_`: `shutting-down`.
pub fn enum_word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_ascii_lowercase()
        .replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(512 << 20), "512 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "16 EiB");
    }

    #[test]
    fn sizes_are_understood_with_and_without_a_unit() {
        assert_eq!(parse_mib("512"), Ok(512));
        assert_eq!(parse_mib("2GiB"), Ok(2048));
        assert_eq!(parse_mib("2g"), Ok(2048));
        assert_eq!(parse_gib("1T"), Ok(1024));
        assert!(parse_gib("10M").is_err());
        assert!(parse_gib("").is_err());
        assert!(parse_gib("-1").is_err());
        assert!(parse_gib("18446744073709551615T").is_err());
    }

    #[test]
    fn ages_use_the_greatest_unit_that_fits() {
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(3599), "59m");
        assert_eq!(duration(86_400 * 9), "9d");
    }
}
