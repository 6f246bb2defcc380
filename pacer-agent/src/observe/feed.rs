//! From a probe to lines: for `pacer observe`, and for the metrics of
//! `pacer source`.

use super::line::Line;
use super::reading::Reader;
use super::state::State;
use crate::pacing::sample::Sample;
use crate::pacing::time::Time;
use crate::probe::{Event, Probe};

/// Makes lines of what a probe sees.
#[derive(Debug)]
pub struct Feed {
    pub(super) state: State,
    pub(super) reader: Reader,
}

impl Feed {
    /// Of the process `pid`, observed since `started`.
    #[must_use]
    pub fn new(pid: u32, started: Time) -> Self {
        Self {
            state: State::new(pid, started),
            reader: Reader::new(pid),
        }
    }

    /// Takes in an event of the probe.
    pub fn handle_event(&mut self, event: &Event) {
        self.state.ram.handle_event(event);
    }

    /// Takes in a point of the dirty curve that was seen at `at`.
    pub fn handle_sample(&mut self, sample: Option<Sample>, at: Time) {
        if let Some(Sample::Dirty(window)) = sample {
            self.state.ram.handle_window(window, at);
        }
    }

    /// What is to be told now. `ended`: the process is gone.
    pub fn line(&mut self, probe: &mut Probe, ended: bool) -> Line {
        let reading = self.reader.read(probe, &self.state);
        self.state.line(reading, ended)
    }
}
