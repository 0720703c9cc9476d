//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The address of one network interface: unicast, not all zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// A text that is no [`MacAddress`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MacError {
    /// Not six times two hexadecimal digits with colons between them.
    #[error("not of the form 02:00:00:00:00:01")]
    Form,
    /// The group bit is set, or all bytes are zeroes.
    #[error("not a unicast address")]
    NotUnicast,
}

impl MacAddress {
    /// The bytes in the order in which they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacError::Form)?;
            // from_str_radix alone would take a sign, and one digit.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacError::Form);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError::Form)?;
        }
        if parts.next().is_some() {
            return Err(MacError::Form);
        }
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(MacError::NotUnicast);
        }
        Ok(MacAddress(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unicast_addresses_are_read_and_printed() {
        for text in ["02:00:00:00:00:01", "00:1b:21:0a:0b:ff"] {
            assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        }
        let upper: MacAddress = "0A:00:00:00:00:FE".parse().unwrap();
        assert_eq!(upper.bytes(), [0x0a, 0, 0, 0, 0, 0xfe]);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacError::Form), "{text}");
        }
        for text in [
            "02:00:00:00:00:+1",
            "02-00-00-00-00-01",
            "02:00:00:00:00:0g",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacError::Form), "{text}");
        }
        for text in [
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(
                text.parse::<MacAddress>(),
                Err(MacError::NotUnicast),
                "{text}"
            );
        }
    }
}
