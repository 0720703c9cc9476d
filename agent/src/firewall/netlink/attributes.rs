//! Netlink attributes: length, type, value, filled up to 4 bytes; some hold others.

/// Says that the value is attributes itself.
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;

/// Attributes one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Nothing that we put in one attribute comes near 64 KiB; longer would be our mistake.
        let len = u16::try_from(value.len() + 4).expect("an attribute's length");
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// In network byte order, as all numbers of netfilter are.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// With the zero at its end.
    pub fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let value: Vec<u8> = value.bytes().chain([0]).collect();
        self.bytes(kind, &value)
    }

    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Writer)) -> &mut Self {
        let mut inner = Writer::new();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    pub kind: u16,
    nested: bool,
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub fn u32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    pub fn u64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value.try_into().ok()?))
    }

    pub fn u16(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.value.try_into().ok()?))
    }

    pub fn string(&self) -> &'a str {
        let bytes = self.value.split(|byte| *byte == 0).next();
        std::str::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
    }
}

/// The attributes in `bytes`, as far as they are whole.
pub fn parse(bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (header, _) = rest.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute {
            kind: kind & TYPE_MASK,
            nested: kind & NESTED != 0,
            value,
        })
    })
}

/// The value of the first attribute of a type.
pub fn find(bytes: &[u8], kind: u16) -> Option<Attribute<'_>> {
    parse(bytes).find(|attribute| attribute.kind == kind)
}

/// Whether what the kernel has (`actual`) is what it was told (`wanted`): everything that was said
/// is there, and what the kernel adds is zero, which is what it takes for not said.
pub fn same(wanted: &[u8], actual: &[u8]) -> bool {
    let said = parse(wanted).all(|wanted| {
        find(actual, wanted.kind).is_some_and(|actual| {
            if wanted.nested {
                same(wanted.value, actual.value)
            } else {
                wanted.value == actual.value
            }
        })
    });
    said && parse(actual).all(|actual| {
        find(wanted, actual.kind).is_some() || actual.value.iter().all(|byte| *byte == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_found_again_and_nothing_else_is_the_same() {
        let write = |port: u8, more: bool| {
            let mut writer = Writer::new();
            writer.string(1, "cmp").nested(2, |inner| {
                inner.u32(1, 8).bytes(3, &[port, 0, 0]);
                if more {
                    inner.u32(7, 0);
                }
            });
            writer.into_bytes()
        };
        assert!(same(&write(80, false), &write(80, false)));
        assert!(same(&write(80, false), &write(80, true)), "zero by default");
        assert!(
            !same(&write(80, true), &write(80, false)),
            "said, not there"
        );
        assert!(!same(&write(80, false), &write(81, false)));
        assert!(!same(&write(80, false), &[]));
        let bytes = write(80, false);
        assert_eq!(find(&bytes, 1).expect("name").string(), "cmp");
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).count() <= 2, "cut off is no trouble");
        }
    }
}
