//! Where lines go: JSON, a block a tick, or a block that is drawn anew.

use std::io::{self, IsTerminal as _, Write as _};

use rustix::termios::tcgetwinsize;

use super::line::Line;
use super::table::table;

/// Clears from the cursor to the end of the screen.
const CLEAR_BELOW: &str = "\x1b[J";

/// Standard output.
#[derive(Debug)]
pub(super) struct Screen {
    json: bool,
    terminal: bool,
    /// Rows of the last block.
    rows: usize,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stdout().is_terminal(),
            rows: 0,
        }
    }

    /// Shows `line`.
    ///
    /// # Errors
    ///
    /// If standard output takes it not; `BrokenPipe`: nobody reads it any more.
    pub(super) fn show(&mut self, line: &Line) -> io::Result<()> {
        let text = if self.json {
            let mut text = serde_json::to_string(line)?;
            text.push('\n');
            text
        } else if self.terminal {
            self.redraw(&table(line))
        } else {
            let mut text = table(line);
            text.push('\n');
            text
        };
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// `block` over the one before, cut to the size of the terminal.
    fn redraw(&mut self, block: &str) -> String {
        let (columns, most_rows) = size();
        let mut text = String::new();
        if self.rows > 0 {
            text.push_str(&format!("\x1b[{}A\r", self.rows));
        }
        text.push_str(CLEAR_BELOW);
        self.rows = 0;
        for row in block.lines().take(most_rows.saturating_sub(1)) {
            text.extend(row.chars().take(columns));
            text.push('\n');
            self.rows += 1;
        }
        text
    }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        _ => (80, 24),
    }
}
