//! Cases that wait, mostly, beside each other: none is measured.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};

/// Runs every case, `at_once` at a time, and says which went well and how long each
/// took.
///
/// # Errors
/// Those of all cases that failed or panicked, by their names.
pub fn run_beside<C: Sync>(
    cases: &[C],
    at_once: usize,
    name: impl Fn(&C) -> &str + Sync,
    run: impl Fn(&C) -> Result<()> + Sync,
) -> Result<()> {
    let left = Mutex::new(cases.iter());
    let failures = Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(case) = next else { return };
            let start = Instant::now();
            let found = catch_unwind(AssertUnwindSafe(|| run(case)));
            match found.unwrap_or_else(|_| Err(anyhow!("it panicked"))) {
                Ok(()) => eprintln!("{}: ok after {:.1?}", name(case), start.elapsed()),
                Err(error) => {
                    let text = format!("{}: {error:#}", name(case));
                    let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                    failures.push(text);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_named() {
        let run = |case: &&str| match *case {
            "bad" => Err(anyhow!("no")),
            "worse" => panic!("never"),
            _ => Ok(()),
        };
        let error = run_beside(&["good", "bad", "worse", "fine"], 2, |case| case, run);
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("bad: no") && text.contains("worse: it panicked"),
            "{text}"
        );
        assert!(!text.contains("fine"));
        assert!(run_beside(&["good"], 2, |case| case, run).is_ok());
    }
}
