//! The log of a run: what happened, and when. Two runs of one seed have the same.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use super::threads;

/// The log.
#[derive(Default)]
pub struct Events(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    lines: Vec<String>,
    violations: Vec<String>,
    prints: bool,
}

impl Events {
    /// A log that is printed as it is written.
    #[must_use]
    pub fn printed(prints: bool) -> Self {
        Self(Mutex::new(Kept {
            prints,
            ..Kept::default()
        }))
    }

    /// Notes something.
    pub fn note(&self, what: &str) {
        let mut line = String::new();
        let seconds = threads::elapsed().as_secs_f64();
        write!(line, "{seconds:12.6} {what}").expect("text can be written");
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.prints {
            println!("{line}");
        }
        kept.lines.push(line);
    }

    /// Notes something that must not happen.
    pub fn violation(&self, what: &str) {
        self.note(&format!("VIOLATION: {what}"));
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.violations.push(what.to_owned());
    }

    /// All that must not have happened.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.violations.clone()
    }

    /// All lines.
    #[must_use]
    pub fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = kept.lines.join("\n");
        text.push('\n');
        text
    }
}
