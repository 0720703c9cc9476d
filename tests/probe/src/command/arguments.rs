//! The grammar of a command: `word key=value key="a value with spaces"`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What was wrong, in words.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure(pub String);

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self(text.to_string())
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A command that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The first word.
    pub command: String,
    pairs: Vec<(String, String)>,
}

impl Arguments {
    /// Reads a line.
    pub fn parse(line: &str) -> Result<Self, Failure> {
        let line = line.trim();
        let (command, mut rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let mut pairs = Vec::new();
        loop {
            rest = rest.trim_start();
            if rest.is_empty() {
                return Ok(Self {
                    command: command.to_string(),
                    pairs,
                });
            }
            let Some((key, value)) = rest.split_once('=') else {
                return Err(format!("{rest:?} is no key=value").into());
            };
            if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(format!("{key:?} is no key").into());
            }
            let (value, after) = take_value(value)?;
            pairs.push((key.to_string(), value));
            rest = after;
        }
    }

    /// Fails if there is a key that isn't one of `known`.
    pub fn only(&self, known: &[&str]) -> Result<(), Failure> {
        match self
            .pairs
            .iter()
            .find(|(key, _)| !known.contains(&key.as_str()))
        {
            Some((key, _)) => Err(format!("{} knows no {key}", self.command).into()),
            None => Ok(()),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|pair| pair.0 == key)
            .map(|pair| pair.1.as_str())
    }

    /// Values of a key that is given more than once.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |pair| pair.0 == key)
            .map(|pair| pair.1.as_str())
    }

    /// The value of a key that must be there.
    pub fn text(&self, key: &str) -> Result<&str, Failure> {
        self.get(key)
            .ok_or_else(|| format!("{key} is missing").into())
    }

    /// A value that is parsed by its type; `None` if it isn't there.
    pub fn parsed<T: core::str::FromStr>(&self, key: &str) -> Result<Option<T>, Failure> {
        self.get(key)
            .map(|text| text.parse().map_err(|_| bad(key, text)))
            .transpose()
    }

    /// A number that must be there.
    pub fn number(&self, key: &str) -> Result<u64, Failure> {
        parse_number(self.text(key)?).ok_or_else(|| bad(key, self.get(key).unwrap_or("")))
    }

    /// A number, or what it is if it isn't there.
    pub fn number_or(&self, key: &str, default: u64) -> Result<u64, Failure> {
        self.get(key).map_or(Ok(default), |_| self.number(key))
    }

    /// Seconds, such as `2` or `0.25`, in nanoseconds.
    pub fn duration(&self, key: &str) -> Result<Option<u64>, Failure> {
        self.get(key)
            .map(|text| parse_seconds(text).ok_or_else(|| bad(key, text)))
            .transpose()
    }

    /// `true` or `false`; false if it isn't there.
    pub fn flag(&self, key: &str) -> Result<bool, Failure> {
        Ok(self.parsed(key)?.unwrap_or(false))
    }
}

fn bad(key: &str, text: &str) -> Failure {
    format!("{key}: {text:?} can't be").into()
}

fn take_value(text: &str) -> Result<(String, &str), Failure> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return Ok((text[..end].to_string(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &quoted[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, c @ ('"' | '\\'))) => value.push(c),
                _ => return Err("an escape that isn't one of \\n \\r \\t \\\" \\\\".into()),
            },
            c => value.push(c),
        }
    }
    Err("a quote that does not end".into())
}

/// Decimal or `0x`; `k`, `M`, `G` for powers of 1024.
fn parse_number(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn parse_seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction_ns = match fraction {
        "" => 0,
        digits => digits.parse::<u64>().ok()? * 10u64.pow(9 - digits.len() as u32),
    };
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1_000_000_000)?
        .checked_add(fraction_ns)
}

/// Hexadecimal digits as bytes; colons and spaces between them don't count.
pub fn parse_hex(text: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let mut high = None;
    for c in text.chars().filter(|c| !matches!(c, ':' | ' ')) {
        let digit = c
            .to_digit(16)
            .ok_or_else(|| format!("{c:?} is no hexadecimal digit"))? as u8;
        match high.take() {
            None => high = Some(digit),
            Some(high) => bytes.push(high << 4 | digit),
        }
    }
    match high {
        None => Ok(bytes),
        Some(_) => Err("an odd number of hexadecimal digits".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn keys_values_and_quotes_are_read() {
        let line = r#"  http_get url=http://a/b?c=d header="X: \"y\" \\" header=Z method=PUT "#;
        let arguments = Arguments::parse(line).unwrap();
        assert_eq!(arguments.command, "http_get");
        assert_eq!(arguments.get("url"), Some("http://a/b?c=d"));
        assert_eq!(
            arguments.all("header").collect::<Vec<_>>(),
            ["X: \"y\" \\", "Z"]
        );
        assert!(arguments.only(&["url", "header", "method"]).is_ok());
        assert!(arguments.only(&["url", "header"]).is_err());
        assert_eq!(Arguments::parse("").unwrap().command, "");
        for bad in ["a b", "a =b", "a b=\"c", "a b=\"\\x\"", "a b!=c"] {
            assert!(Arguments::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_and_durations_have_units() {
        let arguments =
            Arguments::parse("x a=4k b=0x10 c=2G d=1.5 e=-1 f=99999999999G g=1.x").unwrap();
        assert_eq!(arguments.number("a"), Ok(4096));
        assert_eq!(arguments.number("b"), Ok(16));
        assert_eq!(arguments.number("c"), Ok(2 << 30));
        assert_eq!(arguments.duration("d"), Ok(Some(1_500_000_000)));
        assert_eq!(arguments.number_or("z", 7), Ok(7));
        for key in ["e", "f", "d"] {
            assert!(arguments.number(key).is_err(), "{key}");
        }
        assert!(arguments.duration("g").is_err());
    }

    #[test]
    fn hexadecimal_digits_become_bytes() {
        assert_eq!(parse_hex("00:fF 7a"), Ok(vec![0, 255, 0x7a]));
        assert!(parse_hex("0").is_err() && parse_hex("0g").is_err());
    }
}
