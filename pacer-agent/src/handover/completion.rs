//! Whether the source has completed, told from outside, where there is no QMP.
//!
//! A source that resumes after its destination has loaded doubles the guest, so
//! `completed` is believed only if both are seen: `SHUT` delivered to the
//! source, and the state QEMU enters by `migrate_set_state`. Pure.

/// `MigrationStatus` as both schemes of QEMU number it: up to 9.0, and from 9.1
/// (which put `postcopy-recover-setup` before `postcopy-recover`).
const CANCELLING: u32 = 2;
const CANCELLED: u32 = 3;
const ACTIVE: u32 = 4;
const OLD_COMPLETED: u32 = 8;
const OLD_FAILED_NEW_COMPLETED: u32 = 9;
const NEW_FAILED: u32 = 10;
const OLD_DEVICE: u32 = 12;
const NEW_DEVICE: u32 = 13;

/// What the source's migration came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// It has not ended.
    Open,
    /// It completed: the source will not run the guest by itself.
    Completed,
    /// It failed or was cancelled: the source runs the guest.
    Failed,
    /// It ended, and it cannot be told how.
    Unclear,
}

/// Follows the source's state from the first change on.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompletionWatch {
    state: Option<u32>,
    ended: Option<Completion>,
    cancelled: bool,
    shut: Option<u32>,
}

impl CompletionWatch {
    /// QEMU called `migrate_set_state(old, new)`. Like QEMU itself this changes
    /// nothing if the state is not `old`.
    pub fn on_state(&mut self, old: u32, new: u32) {
        if matches!(new, CANCELLING | CANCELLED) {
            self.cancelled = true;
        }
        if self.state.is_some_and(|state| state != old) {
            return;
        }
        self.state = Some(new);
        self.ended = match (old, new) {
            (ACTIVE | OLD_DEVICE, OLD_COMPLETED) | (NEW_DEVICE, OLD_FAILED_NEW_COMPLETED) => {
                Some(Completion::Completed)
            }
            (OLD_DEVICE, OLD_FAILED_NEW_COMPLETED) | (_, NEW_FAILED | CANCELLED) => {
                Some(Completion::Failed)
            }
            // Failed up to 9.0, completed in 9.1 and 9.2.
            (_, OLD_FAILED_NEW_COMPLETED) => Some(Completion::Unclear),
            _ => self.ended,
        };
    }

    /// `SHUT` was delivered to the source's QEMU with `value`.
    pub fn on_shut(&mut self, value: u32) {
        self.shut = Some(value);
    }

    /// `SHUT` was delivered and says that the guest was loaded.
    #[must_use]
    pub fn was_loaded(&self) -> bool {
        self.shut == Some(0)
    }

    /// What can be said now.
    #[must_use]
    pub fn completion(&self) -> Completion {
        match self.ended {
            None => Completion::Open,
            // A cancel that raced with the end: which won is not seen.
            Some(Completion::Completed) if self.cancelled => Completion::Unclear,
            Some(Completion::Completed) if !self.was_loaded() => Completion::Open,
            Some(Completion::Unclear) if !self.was_loaded() => Completion::Failed,
            Some(ended) => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(states: &[u32], shut: Option<u32>, expected: Completion) {
        let mut watch = CompletionWatch::default();
        for pair in states.windows(2) {
            watch.on_state(pair[0], pair[1]);
        }
        if let Some(value) = shut {
            watch.on_shut(value);
        }
        assert_eq!(watch.completion(), expected, "{states:?} {shut:?}");
    }

    #[test]
    fn both_schemes_are_told_apart() {
        // 7.2 has no device state without pause-before-switchover, 10.0 has.
        check(&[0, 1, 4, 8], Some(0), Completion::Completed);
        check(&[0, 1, 4, 13, 9], Some(0), Completion::Completed);
        check(&[0, 1, 4, 11, 12, 8], Some(0), Completion::Completed);
        check(&[0, 1, 4, 13, 10], Some(0), Completion::Failed);
        check(&[0, 1, 4, 9], None, Completion::Failed);
        check(&[0, 1, 4, 2, 3], None, Completion::Failed);
        check(&[0, 1, 4], None, Completion::Open);
    }

    #[test]
    fn nothing_is_believed_without_shut() {
        check(&[0, 1, 4, 8], None, Completion::Open);
        check(&[0, 1, 4, 8], Some(1), Completion::Open);
    }

    #[test]
    fn what_cannot_be_told_is_said_to_be_unclear() {
        check(&[0, 1, 4, 9], Some(0), Completion::Unclear);
        let mut watch = CompletionWatch::default();
        watch.on_state(1, 4);
        watch.on_shut(0);
        watch.on_state(4, 2);
        watch.on_state(4, 8);
        assert_ne!(watch.completion(), Completion::Completed);
    }

    #[test]
    fn a_change_from_another_state_changes_nothing() {
        let mut watch = CompletionWatch::default();
        watch.on_state(1, 4);
        watch.on_shut(0);
        watch.on_state(12, 8);
        assert_eq!(watch.completion(), Completion::Open);
    }
}
