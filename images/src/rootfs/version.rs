//! The order of version strings (UAPI Group, "Version Format Specification").

use std::cmp::Ordering;

/// Compares two versions: `6.1.0-9` is older than `6.1.0-10`, `6.2~rc1` older than `6.2`.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        // What is neither letter, digit nor one of -.~^ only separates.
        a = skip(a, |c| !is_relevant(c));
        b = skip(b, |c| !is_relevant(c));
        // A tilde is older than anything, also than the end.
        match (a.first() == Some(&b'~'), b.first() == Some(&b'~')) {
            (true, true) => {
                (a, b) = (&a[1..], &b[1..]);
                continue;
            }
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let mut separated = false;
        for separator in [b'-', b'^', b'.'] {
            match (a[0] == separator, b[0] == separator) {
                (true, true) => {
                    (a, b) = (&a[1..], &b[1..]);
                    separated = true;
                    break;
                }
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
        }
        if separated {
            continue;
        }
        let order = if a[0].is_ascii_digit() || b[0].is_ascii_digit() {
            let (left, right) = (
                take(&mut a, u8::is_ascii_digit),
                take(&mut b, u8::is_ascii_digit),
            );
            let (left, right) = (skip(left, |c| *c == b'0'), skip(right, |c| *c == b'0'));
            // Without leading zeroes the longer number is the larger one.
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            let (left, right) = (
                take(&mut a, u8::is_ascii_alphabetic),
                take(&mut b, u8::is_ascii_alphabetic),
            );
            left.cmp(right)
        };
        if order.is_ne() {
            return order;
        }
    }
}

fn is_relevant(c: &u8) -> bool {
    c.is_ascii_alphanumeric() || b"-.~^".contains(c)
}

fn skip(bytes: &[u8], unwanted: impl Fn(&u8) -> bool) -> &[u8] {
    let start = bytes.iter().position(|c| !unwanted(c));
    &bytes[start.unwrap_or(bytes.len())..]
}

/// Cuts the longest prefix of wanted characters off.
fn take<'a>(bytes: &mut &'a [u8], wanted: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = bytes.iter().position(|c| !wanted(c));
    let (prefix, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
    *bytes = rest;
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_the_order_of_the_specification() {
        // Each older than the next; the first lines are the specification's own example.
        let ascending = [
            "~",
            "",
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a:?} and {b:?}");
            }
        }
    }

    #[test]
    fn kernels_are_compared_by_number_and_not_by_letter() {
        assert!(compare("6.1.0-9-amd64", "6.1.0-10-amd64").is_lt());
        assert!(compare("5.14.0-427.el9", "5.14.0-70.el9").is_gt());
        assert!(compare("6.011", "6.11").is_eq());
        assert!(compare("", "6").is_lt());
    }

    #[test]
    fn comparing_ends_for_any_text() {
        for a in ["---", "...~", "\u{1f4a5}", "a\0b", "00000", "^^~~--.."] {
            for b in ["", "--", "~~~~", "\u{1f4a5}1", "0", "^^~~--.a"] {
                assert_eq!(compare(a, b), compare(b, a).reverse(), "{a:?} {b:?}");
            }
        }
    }
}
