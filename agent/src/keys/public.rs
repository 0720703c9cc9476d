//! Public keys as OpenSSH writes them: type, base64, comment.

use ssh_key::{Algorithm, HashAlg};

/// Longest line: an RSA key of 16,384 bits takes 2,800 characters.
const MAX_LINE: usize = 4096;

/// What is kept of a public key.
#[derive(Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// `ssh-ed25519`, ...
    pub key_type: String,
    /// `SHA256:…`
    pub fingerprint: String,
    /// Type, base64 and comment.
    pub line: String,
}

/// Reads a line of a `.pub` file; without a comment, `name` becomes it. The error says what is
/// wrong.
pub fn read(line: &str, name: &str) -> Result<PublicKey, String> {
    let line = line.trim();
    if line.is_empty() {
        return Err("the public key is missing".to_owned());
    }
    if line.contains("PRIVATE KEY") {
        return Err("this is a private key; give the .pub file".to_owned());
    }
    if line.len() > MAX_LINE || line.chars().any(char::is_control) {
        return Err(format!(
            "a public key is one line of at most {MAX_LINE} characters: type, base64, comment"
        ));
    }
    let mut key = ssh_key::PublicKey::from_openssh(line)
        .map_err(|error| format!("not a public key of OpenSSH: {error}"))?;
    if matches!(key.algorithm(), Algorithm::Dsa | Algorithm::Other(_)) {
        return Err(format!("keys of type {} are of no use", key.algorithm()));
    }
    if let Some(rsa) = key.key_data().rsa() {
        let bits = rsa.n.as_positive_bytes().map_or(0, |n| n.len() * 8);
        if bits < 2048 {
            return Err(format!(
                "an RSA key of {bits} bits is too short; 2048 at least"
            ));
        }
    }
    if key.comment().is_empty() {
        key.set_comment(name);
    }
    describe(&key).map_err(|error| error.to_string())
}

/// What is kept of a key.
pub fn describe(key: &ssh_key::PublicKey) -> Result<PublicKey, ssh_key::Error> {
    Ok(PublicKey {
        key_type: key.algorithm().to_string(),
        fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        line: key.to_openssh()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJTFkrkdL4tPGBhZs3W0M9IcmoAWKwn4PCjdrDZ4NgMN";

    #[test]
    fn a_key_keeps_its_comment_or_gets_the_name() {
        let key = read(&format!("{ED25519}\n"), "laptop").expect("a key");
        assert_eq!(key.key_type, "ssh-ed25519");
        assert_eq!(key.line, format!("{ED25519} laptop"));
        assert!(key.fingerprint.starts_with("SHA256:"));
        let key = read(&format!("{ED25519} me@home"), "laptop").expect("a key");
        assert_eq!(key.line, format!("{ED25519} me@home"));
    }

    #[test]
    fn what_is_no_public_key_is_told_why() {
        for (bad, why) in [
            ("", "missing"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", "private"),
            ("ssh-ed25519 AAAA", "not a public key"),
            ("ssh-rsa nonsense", "not a public key"),
            ("ssh-ed25519 AAAA\nssh-ed25519 AAAA", "one line"),
        ] {
            let problem = read(bad, "x").expect_err(bad);
            assert!(problem.contains(why), "{bad:?}: {problem}");
        }
        assert!(read(&"x".repeat(5000), "x").is_err());
    }
}
