//! What may be used and never shown.
use super::value::{Refused, refused};
use core::fmt;
use std::path::{Path, PathBuf};

/// What stands in place of a secret wherever it would be shown.
pub const SHOWN: &str = "(secret)";

/// A secret text. It has no `Display`, and `Debug` does not tell it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    text: String,
    /// Where it was read from, if not from the configuration itself.
    file: Option<PathBuf>,
}

impl Secret {
    /// Takes a text, without white space around it, if it can be meant as a secret. A refusal does not repeat it.
    pub(super) fn new(text: &str, min: usize, file: Option<PathBuf>) -> Result<Secret, Refused> {
        let text = text.trim();
        let example = format!("write one line of {min} bytes or more, e.g. what `openssl rand -base64 48` prints");
        if text == SHOWN {
            return Err(refused(
                format!("{SHOWN} stands in place of a secret that was not shown"),
                "put in the secret itself",
            ));
        }
        // Whoever takes a public key for a shared secret lets everybody sign who knows the public key.
        if text.starts_with("-----BEGIN") {
            return Err(refused("it is a PEM key or certificate, not a shared secret", example));
        }
        if text.chars().any(char::is_control) {
            return Err(refused("it has line breaks or control characters", example));
        }
        if text.len() < min {
            return Err(refused(format!("it has {} bytes, too few to be a secret", text.len()), example));
        }
        Ok(Secret { text: text.to_string(), file })
    }

    pub fn bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// The file it was read from.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_taken_without_the_white_space_around_it_and_never_shown() {
        let secret = Secret::new(" correct horse battery\n", 16, None).unwrap();
        assert_eq!(secret.bytes(), b"correct horse battery");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "(secret) Some((secret))");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_not_repeated() {
        for (text, part) in [
            ("swordfish", "9 bytes"),
            ("swordfish\nswordfish", "line breaks"),
            ("-----BEGIN PUBLIC KEY----- swordfish", "PEM"),
            ("(secret)", "not shown"),
            ("", "0 bytes"),
        ] {
            let refused = Secret::new(text, 16, None).unwrap_err();
            assert!(refused.reason.contains(part), "{refused:?}");
            assert!(!format!("{refused:?}").contains("swordfish"), "{refused:?}");
        }
    }
}
