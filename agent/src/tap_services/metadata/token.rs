//! IMDSv2's tokens: when they end, a random number, and a signature over both and the instance's
//! id. Nothing is kept of them; the key is the agent's, and outlives it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{tap_services::shared::KEY_BYTES, time::Millis};

/// Seconds that a token may be good for: six hours.
pub const MAX_TTL: u32 = 21_600;

/// First byte of a token.
const VERSION: u8 = 1;
/// Version, end, random number.
const SIGNED: usize = 1 + 8 + 16;
const LENGTH: usize = SIGNED + 32;

/// The seconds that the header of a request for a token says; `None` for what is no such number.
pub fn ttl(header: &str) -> Option<u32> {
    let ttl = header.trim().parse().ok()?;
    (1..=MAX_TTL).contains(&ttl).then_some(ttl)
}

fn signature(key: &[u8; KEY_BYTES], instance_id: &str, signed: &[u8]) -> Hmac<Sha256> {
    // Any length is a key.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key");
    // The first part has a fixed length, so that no two texts run together to the same.
    mac.update(signed);
    mac.update(instance_id.as_bytes());
    mac
}

/// A token that is good for `ttl` seconds, for this instance only.
///
/// # Errors
/// When the host gives no random numbers.
pub fn make(
    key: &[u8; KEY_BYTES],
    instance_id: &str,
    ttl: u32,
    now: Millis,
) -> Result<String, getrandom::Error> {
    let end = now.0.saturating_add(i64::from(ttl) * 1000);
    let mut token = [0; LENGTH];
    token[0] = VERSION;
    token[1..9].copy_from_slice(&end.to_be_bytes());
    getrandom::fill(&mut token[9..SIGNED])?;
    let tag = signature(key, instance_id, &token[..SIGNED]).finalize();
    token[SIGNED..].copy_from_slice(&tag.into_bytes());
    Ok(BASE64_URL_SAFE_NO_PAD.encode(token))
}

/// The seconds that a token is good for still; `None` when it is not, or not this instance's.
pub fn seconds_left(
    key: &[u8; KEY_BYTES],
    instance_id: &str,
    token: &str,
    now: Millis,
) -> Option<u32> {
    // Not a byte more than a token has is decoded.
    if token.len() > LENGTH.div_ceil(3) * 4 {
        return None;
    }
    let token = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
    let token: [u8; LENGTH] = token.try_into().ok()?;
    let (signed, tag) = token.split_at(SIGNED);
    // In constant time.
    signature(key, instance_id, signed).verify_slice(tag).ok()?;
    if signed[0] != VERSION {
        return None;
    }
    let end = i64::from_be_bytes(signed[1..9].try_into().ok()?);
    let left = end.saturating_sub(now.0);
    // A clock that was set back must not make it good for longer than any is.
    if left <= 0 || left > i64::from(MAX_TTL) * 1000 {
        return None;
    }
    u32::try_from(left.div_euclid(1000)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; KEY_BYTES] = [7; KEY_BYTES];
    const ID: &str = "i-0123456789abcdef0";

    #[test]
    fn a_token_is_good_for_its_instance_its_key_and_its_time() {
        let now = Millis(1_000_000);
        let token = make(&KEY, ID, 60, now).expect("random");
        assert_eq!(seconds_left(&KEY, ID, &token, now), Some(60));
        assert_eq!(
            seconds_left(&KEY, ID, &token, Millis(now.0 + 59_999)),
            Some(0)
        );
        assert_eq!(seconds_left(&KEY, ID, &token, Millis(now.0 + 60_000)), None);
        let other = "i-0123456789abcdef1";
        assert_eq!(seconds_left(&KEY, other, &token, now), None);
        assert_eq!(seconds_left(&[8; KEY_BYTES], ID, &token, now), None);
        // The clock was set back by a day.
        assert_eq!(
            seconds_left(&KEY, ID, &token, Millis(now.0 - 86_400_000)),
            None
        );
        assert_ne!(make(&KEY, ID, 60, now).expect("random"), token);
    }

    #[test]
    fn a_time_to_live_is_1_to_21600() {
        assert_eq!(ttl("21600"), Some(21_600));
        assert_eq!(ttl(" 1 "), Some(1));
        for bad in ["0", "21601", "-1", "", "1.5", "x", "99999999999999999999"] {
            assert_eq!(ttl(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_token_with_any_byte_changed_is_no_token(at in 0usize..76, to in any::<char>()) {
            let now = Millis(1_000_000);
            let token = make(&KEY, ID, 60, now).expect("random");
            let mut changed: Vec<char> = token.chars().collect();
            prop_assume!(changed[at] != to);
            changed[at] = to;
            let changed: String = changed.into_iter().collect();
            prop_assert_eq!(seconds_left(&KEY, ID, &changed, now), None);
        }

        #[test]
        fn nothing_else_is_a_token(text in ".{0,200}") {
            prop_assert_eq!(seconds_left(&KEY, ID, &text, Millis(0)), None);
        }
    }
}
