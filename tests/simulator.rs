//! The shard's own loop in simulated worlds (`signalring::sim`), a thousand of them, each from its seed.
//!
//! `SIMULATOR_SEED=n` runs one world and prints everything that happens in it; `SIMULATOR_SEEDS=from..to` runs others.
use signalring::sim::{self, Failure, Fault, Options, Report, Sabotage};
use std::env::var;
use std::ops::Range;

fn run_all(seeds: Range<u64>) -> Report {
    let (mut sum, mut failures) = (Report::default(), Vec::<Failure>::new());
    for seed in seeds.clone() {
        match sim::run(seed) {
            Ok(report) => sum.add(&report),
            Err(failure) => failures.push(failure),
        }
    }
    println!("worlds {seeds:?}: {sum}");
    if let Some(first) = failures.first() {
        for failure in &failures {
            println!("seed {}: {}", failure.seed, failure.rule);
        }
        panic!("{} of {} worlds went wrong; the first one:\n{first}", failures.len(), seeds.end - seeds.start);
    }
    sum
}

fn asked_for() -> Option<Range<u64>> {
    let text = var("SIMULATOR_SEEDS").ok()?;
    let (from, to) = text.split_once("..").expect("SIMULATOR_SEEDS=from..to");
    Some(from.parse().expect("a number")..to.parse().expect("a number"))
}

#[test]
fn a_thousand_worlds_keep_every_rule() {
    if let Ok(seed) = var("SIMULATOR_SEED") {
        let options = Options { is_told: true, ..Options::default() };
        match sim::run_with(seed.parse().expect("a number"), options) {
            Ok(report) => println!("{report}"),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let seeds = asked_for();
    let is_usual = seeds.is_none();
    let sum = run_all(seeds.unwrap_or(0..1000));
    if is_usual {
        for fault in Fault::ALL {
            assert!(sum.faults.of(*fault) > 0, "there were no {}", fault.words());
        }
        assert!(sum.excused * 20 < sum.sent, "too much is excused to prove anything");
    }
}

#[test]
fn a_seed_is_all_that_a_world_depends_on() {
    for seed in 0..10 {
        assert_eq!(sim::run(seed), sim::run(seed), "seed {seed}");
    }
    assert_ne!(sim::run(0), sim::run(1));
}

/// What is broken on purpose is missed: otherwise the rules would say nothing.
#[test]
fn every_broken_rule_is_caught() {
    for sabotage in Sabotage::ALL {
        let options = Options { sabotage: Some(sabotage), ..Options::default() };
        let caught = (0..300).find_map(|seed| Some((seed, sim::run_with(seed, options).err()?)));
        let (seed, failure) = caught.unwrap_or_else(|| panic!("{sabotage:?} is not caught"));
        println!("{sabotage:?} is caught by world {seed}: {}", failure.rule);
        assert!(sim::run(seed).is_ok(), "world {seed} goes wrong by itself");
    }
}
