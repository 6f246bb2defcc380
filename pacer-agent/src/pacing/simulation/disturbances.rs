//! What comes in between half-way, over many draws: deadlines are met all the same
//! where they still can be, and where they cannot that is said.

use super::run::{Order, Run, steady};
use super::scenarios::{Draw, Scenario, at, error, scenario, see};
use super::synthetic::SyntheticGuest;
use crate::pacing::controller::{Objective, Reason, Verdict};
use crate::pacing::number::to_u64;
use crate::pacing::sample::Sample;
use crate::pacing::simulation::Sight;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Disturbance {
    None,
    Busier,
    Moves,
    Halved,
    Down,
}

/// Guests of each kind, to be moved over a link that was measured.
fn draw(draw: &mut Draw) -> Scenario {
    let mib = draw.between(256.0, 4096.0);
    let normal = mib * draw.between(0.3, 0.95);
    let set = (normal * 256.0 * draw.between(0.005, 0.3)).max(64.0);
    let link_rate = draw.between(40e6, 300e6);
    // A share of what the link takes.
    let per_second = link_rate / 4104.0 * draw.between(0.01, 0.5);
    let idle = SyntheticGuest::idle(mib, normal);
    let guest = match to_u64(draw.unit() * 5.0) {
        0 => idle,
        1 => idle.sweeping(set, per_second),
        2 => idle.scattering(set, per_second),
        3 => idle
            .scattering(set * 0.1, per_second * 0.9)
            .sweeping(set, per_second * 0.1),
        _ => idle
            .scattering(set, per_second)
            .bursting(draw.between(1.0, 10.0), draw.between(0.3, 0.8)),
    };
    let mut scenario = scenario(guest, Objective::Fastest);
    scenario.link_rate = link_rate;
    scenario.rtt = draw.between(0.0005, 0.05);
    scenario.give_up = 900.0;
    see(
        &mut scenario,
        match to_u64(draw.unit() * 4.0) {
            0 => Sight::Qmp,
            1 => Sight::Log,
            _ => Sight::All,
        },
    );
    let measured = link_rate * draw.between(0.9, 1.1);
    scenario.before.push((
        1.45,
        Sample::LinkRate {
            bytes_per_second: to_u64(measured),
        },
    ));
    scenario
}

/// The earliest that it arrives if all is given from `at` seconds on.
fn earliest(scenario: &Scenario, at: f64) -> f64 {
    let mut fastest = scenario.clone();
    fastest.orders = vec![(at, Order::Aim(Objective::Fastest))];
    fastest.run().finish
}

/// One whose deadline can be met, with what disturbs it half-way.
fn feasible(draw_from: &mut Draw, disturbance: Disturbance) -> Scenario {
    loop {
        let mut scenario = draw(draw_from);
        let earliest_finish = earliest(&scenario, 0.0);
        let deadline = (earliest_finish * draw_from.between(1.2, 8.0)).max(20.0);
        if deadline > 300.0 {
            continue;
        }
        let deadline = deadline.round();
        scenario.objective = at(to_u64(deadline));
        let half = deadline / 2.0;
        disturb(&mut scenario, disturbance, half);
        if disturbance == Disturbance::None || earliest(&scenario, half) < deadline * 0.95 {
            return scenario;
        }
    }
}

fn disturb(scenario: &mut Scenario, disturbance: Disturbance, half: f64) {
    match disturbance {
        Disturbance::None => scenario.link = steady,
        Disturbance::Busier => scenario.guest = scenario.guest.changing(half, 4.0),
        Disturbance::Moves => scenario.guest = scenario.guest.moving(half),
        Disturbance::Halved => scenario.outage = (half, half + 10.0, 0.5),
        Disturbance::Down => scenario.outage = (half, half + 5.0, 0.0),
    }
}

fn seed() -> u64 {
    let seed = std::env::var("PACER_SIMULATION_SEED").ok();
    seed.and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn runs(optimised: u32) -> u32 {
    let asked = std::env::var("PACER_SIMULATION_RUNS").ok();
    match asked.and_then(|runs| runs.parse().ok()) {
        Some(runs) => runs,
        None if cfg!(debug_assertions) => 3,
        None => optimised,
    }
}

fn deadline(scenario: &Scenario) -> f64 {
    let deadline = scenario.objective.deadline();
    deadline.map_or(0.0, |deadline| deadline.as_secs_f64())
}

fn describe(scenario: &Scenario, run: &Run) -> String {
    format!(
        "{:+.2} s of {} {:?} link {:.0} {:?} verdicts {:?} last {:?}\n",
        error(run, scenario.objective),
        deadline(scenario),
        scenario.sight,
        scenario.link_rate,
        scenario.guest,
        run.verdicts,
        &run.rates[run.rates.len().saturating_sub(8)..]
    )
}

/// How many of `runs` are within `seconds` or `share` of their deadline, the worst, and
/// how many were ever called infeasible.
fn check(disturbance: Disturbance, seconds: f64, share: f64, runs: u32, least: f64) {
    let mut draw = Draw(seed() * 1000);
    let (mut met, mut worst, mut refused) = (0, 0.0_f64, 0);
    let (mut changes, mut turned, mut busiest) = (0.0_f64, 0.0_f64, String::new());
    let mut log = String::new();
    for _ in 0..runs {
        let scenario = feasible(&mut draw, disturbance);
        let run = scenario.run();
        let error = error(&run, scenario.objective).abs();
        let tolerance = (deadline(&scenario) * share).max(seconds);
        worst = worst.max(error / tolerance);
        let infeasible = run
            .verdicts
            .iter()
            .any(|told| told.1 == Verdict::Infeasible);
        refused += u32::from(infeasible);
        met += u32::from(error <= tolerance);
        if error > tolerance || (infeasible && disturbance == Disturbance::None) {
            log += &describe(&scenario, &run);
        }
        let seconds = run.finish - scenario.start;
        let changed = f64::from(u32::try_from(run.rates.len()).unwrap_or(u32::MAX));
        changes = changes.max(changed / seconds);
        if turns(&run) / seconds > turned {
            turned = turns(&run) / seconds;
            busiest = format!(
                "{:?}\n{}",
                &run.rates[..60.min(run.rates.len())],
                describe(&scenario, &run)
            );
        }
    }
    let share_met = f64::from(met) / f64::from(runs);
    println!(
        "{disturbance:?}: {share_met:.3} of {runs} met, worst {worst:.1}, {refused} refused, {changes:.1} changes and {turned:.1} turns a second at most\n{log}"
    );
    assert!(share_met >= least, "{share_met}\n{log}");
    // A tick is 0.1 s.
    assert!(
        changes < 7.0 && turned < 1.5,
        "{changes} {turned} {busiest}"
    );
}

/// How often the rate goes from rising to falling by a tenth and more, trickles apart.
fn turns(run: &Run) -> f64 {
    let mut turned = 0.0;
    let mut last: Option<(f64, bool)> = None;
    for &(_, rate, reason) in &run.rates {
        if reason == Reason::Waiting || rate == u64::MAX {
            continue;
        }
        let rate = crate::pacing::number::to_f64(rate);
        match last {
            None => last = Some((rate, true)),
            Some((before, rising)) => {
                let is_rise = rate > before;
                if (rate / before).ln().abs() > 0.1 {
                    turned += f64::from(u8::from(is_rise != rising));
                    last = Some((rate, is_rise));
                }
            }
        }
    }
    turned
}

#[test]
fn undisturbed_deadlines_are_met() {
    check(Disturbance::None, 0.5, 0.005, runs(60), 0.95);
}

#[test]
fn what_comes_in_between_is_made_good() {
    check(Disturbance::Busier, 1.0, 0.01, runs(30), 0.9);
    check(Disturbance::Moves, 1.0, 0.01, runs(30), 0.9);
}

#[test]
fn a_link_that_was_away_or_slow_is_made_good() {
    check(Disturbance::Halved, 1.0, 0.01, runs(30), 0.9);
    check(Disturbance::Down, 1.0, 0.01, runs(30), 0.9);
}

#[test]
fn what_cannot_be_is_said_in_time_and_with_what_can() {
    let mut draw_from = Draw(seed() * 1000 + 7);
    let (mut right, mut ran) = (0, 0);
    let mut log = String::new();
    while ran < runs(60) {
        let mut scenario = draw(&mut draw_from);
        let earliest = earliest(&scenario, 0.0);
        let wanted = (earliest * draw_from.between(0.3, 0.8)).floor();
        if !(20.0..300.0).contains(&wanted) {
            continue;
        }
        ran += 1;
        scenario.objective = at(to_u64(wanted));
        let run = scenario.run();
        let told = run.verdicts.iter().rfind(|told| told.0 <= 5.0);
        let is_right = told.is_some_and(|&(_, verdict, earliest)| {
            verdict == Verdict::Infeasible
                && earliest.is_some_and(|earliest| (earliest / run.finish - 1.0).abs() <= 0.1)
        });
        right += u32::from(is_right);
        if !is_right {
            log += &format!("earliest {earliest:.1} came {:.1} ", run.finish);
            log += &describe(&scenario, &run);
        }
    }
    let share = f64::from(right) / f64::from(ran);
    println!("infeasible: {share:.3} of {ran} right\n{log}");
    assert!(share >= 0.9, "{share}\n{log}");
}

#[test]
fn hardly_more_is_used_than_the_lowest_constant_rate() {
    let mut draw = Draw(seed() * 1000 + 13);
    let mut ratios = Vec::new();
    for _ in 0..runs(20) {
        let scenario = feasible(&mut draw, Disturbance::None);
        let run = scenario.run();
        let lowest = lowest_constant(&scenario);
        let used = run.bytes / (run.finish - scenario.start);
        ratios.push(used / lowest);
        if used / lowest > 1.15 {
            println!("{:.2} times: {}", used / lowest, describe(&scenario, &run));
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!("rate used over the lowest constant one: {ratios:.3?}");
    let mean = ratios.iter().sum::<f64>() / crate::pacing::number::to_f64(ratios.len() as u64);
    assert!(mean <= 1.1, "{mean}: {ratios:.3?}");
}

/// The average rate of the lowest constant one that arrives in time.
fn lowest_constant(scenario: &Scenario) -> f64 {
    let deadline = deadline(scenario);
    let run_at = |rate: f64| {
        let mut constant = scenario.clone();
        constant.objective = Objective::Fixed(to_u64(rate));
        constant.give_up = deadline + 1.0;
        constant.run()
    };
    let (mut low, mut high) = (1e5_f64, scenario.link_rate);
    for _ in 0..11 {
        let middle = (low * high).sqrt();
        if run_at(middle).finish <= deadline {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}
