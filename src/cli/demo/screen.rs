//! What the demo shows: plain lines on stdout, and a progress bar where somebody is watching.

use std::cell::Cell;
use std::io::{IsTerminal, Write};

/// The output of the demo.
pub(super) struct Screen {
    terminal: bool,
    steps: usize,
    number: usize,
    current: &'static str,
}

impl Screen {
    /// A screen for a demo of so many steps.
    pub(super) fn new(steps: usize) -> Self {
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Self {
            terminal,
            steps,
            number: 0,
            current: "preparing",
        }
    }

    /// Announces the next step.
    pub(super) fn step(&mut self, what: &'static str) {
        self.number += 1;
        self.current = what;
        self.line(&format!("\n[{}/{}] {what}", self.number, self.steps));
    }

    /// The step announced last.
    pub(super) fn current(&self) -> &'static str {
        self.current
    }

    /// Shows one line, or several.
    pub(super) fn line(&self, text: &str) {
        // With stdout closed there is nobody to tell; the exit code still says how it went.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// A progress bar over so many parts.
    pub(super) fn bar(&self, parts: usize) -> Bar {
        let drawn = self
            .terminal
            .then(|| indicatif::ProgressBar::new(parts as u64));
        Bar {
            drawn,
            parts,
            done: Cell::new(0),
        }
    }
}

/// Progress: drawn on a terminal, four lines elsewhere.
pub(super) struct Bar {
    drawn: Option<indicatif::ProgressBar>,
    parts: usize,
    done: Cell<usize>,
}

impl Bar {
    /// One part is done.
    pub(super) fn advance(&self) {
        let before = self.done.get();
        self.done.set(before + 1);
        if let Some(drawn) = &self.drawn {
            drawn.inc(1);
            return;
        }
        let quarter = |done: usize| done * 4 / self.parts.max(1);
        if quarter(before) != quarter(before + 1) {
            let _ = writeln!(std::io::stdout(), "{} of {} parts", before + 1, self.parts);
        }
    }

    /// Everything is done; the bar leaves the screen.
    pub(super) fn finish(&self) {
        if let Some(drawn) = &self.drawn {
            drawn.finish_and_clear();
        }
    }
}
