//! What may be used and never shown.
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
    pub(super) fn new(text: String, file: Option<PathBuf>) -> Secret {
        Secret { text, file }
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
