//! Log lines that a peer can cause: a few get through, the rest is counted, so that nobody can fill a disk or hide something
//! behind noise.
use crate::ids::Time;
use crate::limits::{LOG_LINES_MAX, LOG_WINDOW_MS};
use core::fmt;
use core::time::Duration;

/// One kind of line.
#[derive(Default)]
pub(super) struct Quiet {
    window_ends: Time,
    lines: u32,
    suppressed: u64,
}

/// Behind a line that got through: how many before it did not.
pub(super) struct Suppressed(u64);

impl Quiet {
    /// May a line be written now?
    pub(super) fn admit(&mut self, now: Time) -> Option<Suppressed> {
        if now >= self.window_ends {
            self.window_ends = now.after(Duration::from_millis(LOG_WINDOW_MS));
            self.lines = 0;
        }
        if self.lines >= LOG_LINES_MAX {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(Suppressed(core::mem::take(&mut self.suppressed)))
    }
}

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 { write!(f, " ({} more suppressed)", self.0) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_count() {
        let mut quiet = Quiet::default();
        let mut now = Time::from_millis(5);
        let admitted = (0..1000).filter(|_| quiet.admit(now).is_some()).count();
        assert_eq!(admitted, LOG_LINES_MAX as usize);
        now = now.after(Duration::from_millis(LOG_WINDOW_MS));
        let line = quiet.admit(now).map(|suppressed| suppressed.to_string());
        assert_eq!(line, Some(format!(" ({} more suppressed)", 1000 - LOG_LINES_MAX)));
        assert_eq!(quiet.admit(now).map(|suppressed| suppressed.to_string()), Some(String::new()));
    }
}
