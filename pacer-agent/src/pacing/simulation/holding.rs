//! Held at the brink, and released; times before which it may not arrive; limits and
//! objectives that are changed while it runs.

use std::time::Duration;

use super::run::{Order, Sight};
use super::scenarios::{Scenario, at, error, scenario, see};
use super::synthetic::SyntheticGuest;
use crate::pacing::controller::{Objective, Reason, Verdict};
use crate::pacing::number::to_f64;
use crate::pacing::objective::Limits;

fn guests() -> [SyntheticGuest; 5] {
    let idle = SyntheticGuest::idle(1024.0, 600.0);
    [
        idle,
        idle.scattering(40.0, 20.0),
        idle.sweeping(8000.0, 2000.0),
        idle.scattering(20_000.0, 6000.0),
        idle.scattering(5000.0, 3000.0).bursting(4.0, 0.5),
    ]
}

/// Held from `from` to `to`; as long as it is it must not arrive.
fn held(guest: SyntheticGuest, objective: Objective, from: f64, to: f64) -> Scenario {
    let mut scenario = scenario(guest, objective);
    scenario.orders = vec![(from, Order::Hold), (to, Order::Release)];
    scenario
}

/// The mean rate from `from` to `to`.
fn mean_rate(rates: &[(f64, u64, Reason)], from: f64, to: f64) -> f64 {
    let ends = rates.iter().skip(1).map(|rate| rate.0).chain([to]);
    let bytes = rates.iter().zip(ends).map(|(&(began, rate, _), ended)| {
        let seconds = ended.min(to) - began.max(from);
        seconds.max(0.0) * to_f64(rate.min(1 << 40))
    });
    bytes.sum::<f64>() / (to - from)
}

#[test]
fn held_it_does_not_arrive_and_released_it_soon_does() {
    for guest in guests() {
        for objective in [Objective::Fastest, Objective::Fixed(60_000_000), at(30)] {
            for sight in [Sight::All, Sight::Qmp, Sight::Log] {
                let mut scenario = held(guest, objective, 0.0, 60.0);
                see(&mut scenario, sight);
                let run = scenario.run();
                let last = &run.rates[run.rates.len().saturating_sub(5)..];
                assert!(
                    (60.0..64.0).contains(&run.finish),
                    "{:.2} {objective:?} {sight:?} {guest:?} {last:?}",
                    run.finish
                );
                assert!(run.downtime < 0.6, "{} {guest:?}", run.downtime);
                assert!(run.rates.iter().any(|rate| rate.2 == Reason::Held));
                let rate = mean_rate(&run.rates, 40.0, 60.0);
                assert!(rate < 60e6, "{rate} {guest:?}");
            }
        }
    }
}

#[test]
fn released_in_time_it_arrives_at_the_deadline() {
    for guest in guests() {
        let scenario = held(guest, at(60), 5.0, 35.0);
        let run = scenario.run();
        let error = error(&run, scenario.objective);
        assert!(error.abs() <= 1.0, "{error} {guest:?}");
        assert!(
            run.verdicts
                .iter()
                .all(|told| told.1 != Verdict::Infeasible)
        );
    }
}

#[test]
fn it_may_not_arrive_before_a_time() {
    for guest in guests() {
        let mut scenario = scenario(guest, Objective::Fastest);
        scenario.not_before = Some(Duration::from_secs(40));
        let run = scenario.run();
        assert!(
            (40.0..44.0).contains(&run.finish),
            "{} {guest:?}",
            run.finish
        );
        let early = run.forecasts.iter().find(|one| one.at_seconds > 20.0);
        let finish = early.and_then(|one| one.finish_seconds.p50);
        assert!(finish.is_some_and(|finish| finish >= 40.0), "{finish:?}");
    }
    let mut scenario = scenario(guests()[3], at(30));
    scenario.not_before = Some(Duration::from_secs(40));
    let told = scenario.run().verdicts;
    assert!(
        told.iter()
            .any(|told| told.1 == Verdict::Infeasible && told.0 < 5.0)
    );
}

#[test]
fn limits_and_objectives_are_judged_anew_at_once() {
    let guest = SyntheticGuest::idle(2048.0, 1500.0).scattering(8000.0, 1000.0);
    let mut scenario = scenario(guest, at(60));
    let tight = Limits {
        max_rate: Some(10_000_000),
        ..Limits::default()
    };
    scenario.orders = vec![
        (20.0, Order::Limit(tight)),
        (25.0, Order::Limit(Limits::default())),
        (30.0, Order::Aim(at(10))),
        (35.0, Order::Aim(at(80))),
    ];
    let run = scenario.run();
    let said = |from: f64| {
        let told = run.verdicts.iter().find(|told| told.0 >= from);
        told.map(|told| (told.1, told.0 < from + 0.2))
    };
    let (yes, no) = (Verdict::Feasible, Verdict::Infeasible);
    assert_eq!(
        [20.0, 25.0, 30.0, 35.0].map(said),
        [no, yes, no, yes].map(|said| Some((said, true)))
    );
    let limited = run
        .rates
        .iter()
        .filter(|rate| (20.1..25.0).contains(&rate.0));
    assert!(limited.into_iter().all(|rate| rate.1 <= 10_000_000));
    assert!((run.finish - 80.0).abs() < 0.5, "{}", run.finish);
}
