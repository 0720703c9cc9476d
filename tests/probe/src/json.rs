//! Writes one line of JSON.

use alloc::string::String;
use core::fmt::{self, Display, Write};

/// A JSON object that is being written.
pub struct Json {
    text: String,
    /// The next member is the first of its object or array.
    first: bool,
}

impl Default for Json {
    /// `{`
    fn default() -> Self {
        Self {
            text: String::from("{"),
            first: true,
        }
    }
}

impl Json {
    /// The whole line, with its end.
    pub fn finish(mut self) -> String {
        self.text.push_str("}\n");
        self.text
    }

    /// Adds all members of `other`.
    pub fn merge(&mut self, other: &Self) {
        let members = &other.text[1..];
        if !members.is_empty() {
            self.comma();
            self.text.push_str(members);
        }
    }

    fn comma(&mut self) {
        if !self.first {
            self.text.push(',');
        }
        self.first = false;
    }

    fn key(&mut self, key: &str) {
        self.comma();
        quote(&mut self.text, key);
        self.text.push(':');
    }

    fn put(&mut self, value: impl Display) {
        // Writing to a String can't fail.
        let _ = write!(self.text, "{value}");
    }

    /// A number, or what else displays as JSON does: true, false, null.
    pub fn number(&mut self, key: &str, value: impl Display) -> &mut Self {
        self.key(key);
        self.put(value);
        self
    }

    /// A number, or null.
    pub fn optional(&mut self, key: &str, value: Option<impl Display>) -> &mut Self {
        match value {
            Some(value) => self.number(key, value),
            None => self.number(key, "null"),
        }
    }

    /// A text.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        quote(&mut self.text, value);
        self
    }

    /// What displays as text without need of quoting, such as an address.
    pub fn shown(&mut self, key: &str, value: impl Display) -> &mut Self {
        self.key(key);
        let _ = write!(self.text, "\"{value}\"");
        self
    }

    /// As [`Json::shown`], or null.
    pub fn optional_shown(&mut self, key: &str, value: Option<impl Display>) -> &mut Self {
        match value {
            Some(value) => self.shown(key, value),
            None => self.number(key, "null"),
        }
    }

    /// Bytes: as `<key>_hex`, and as `<key>` too if they are text.
    pub fn bytes(&mut self, key: &str, value: &[u8]) -> &mut Self {
        if let Ok(text) = core::str::from_utf8(value) {
            self.text(key, text);
        }
        self.key(&alloc::format!("{key}_hex"));
        let _ = write!(self.text, "\"{}\"", Hex(value));
        self
    }

    /// An object.
    pub fn object(&mut self, key: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.key(key);
        self.nested('{', '}', fill)
    }

    /// An array, filled by [`Json::element`] and [`Json::item`].
    pub fn array(&mut self, key: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.key(key);
        self.nested('[', ']', fill)
    }

    /// An object in an array.
    pub fn element(&mut self, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.comma();
        self.nested('{', '}', fill)
    }

    /// A text in an array.
    pub fn item(&mut self, value: &str) -> &mut Self {
        self.comma();
        quote(&mut self.text, value);
        self
    }

    fn nested(&mut self, open: char, close: char, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.text.push(open);
        self.first = true;
        fill(self);
        self.text.push(close);
        self.first = false;
        self
    }
}

/// Displays bytes as hexadecimal digits.
pub struct Hex<'a>(pub &'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn quote(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\0'..'\x20' | '\x7f' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_commas_and_quotes_are_right() {
        let mut json = Json::default();
        json.number("a", 1)
            .text("b", "x\"\\\n\u{1}é")
            .optional("c", None::<u8>);
        json.array("d", |json| {
            json.element(|json| {
                json.number("e", true);
            });
            json.element(|_| {});
            json.item("f");
        });
        json.object("g", |_| {})
            .bytes("h", b"hi")
            .bytes("i", &[0xff]);
        assert_eq!(
            json.finish(),
            "{\"a\":1,\"b\":\"x\\\"\\\\\\n\\u0001é\",\"c\":null,\"d\":[{\"e\":true},{},\"f\"],\
             \"g\":{},\"h\":\"hi\",\"h_hex\":\"6869\",\"i_hex\":\"ff\"}\n"
        );
    }
}
