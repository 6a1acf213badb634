//! A short run of everything at once: real nodes, faults of every kind one after the other, clients
//! of every kind, all checkers. `tools`' command `torture` runs it for as long as one likes.
//!
//! `WAL_SECONDS=n` and `WAL_EVENTS=n` change for how long, at least, faults are begun, and how many.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use wal_tests::seed::seed;
use wal_tests::torture::{self, Fault, Plan, Schedule};
use wal_tests::workload::Fate;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn nothing_is_lost_stale_or_torn_while_faults_of_every_kind_follow_each_other() {
    let plan = Plan {
        seed: seed("torture"),
        nodes: 3,
        time: Duration::from_secs(setting("WAL_SECONDS", 30) as u64),
        events_min: setting("WAL_EVENTS", 60),
        schedule: Schedule::named("short").unwrap(),
        clients: 8,
    };
    let report = torture::run(&plan);
    println!("{report}");
    assert_eq!(report.wrong(), [""; 0]);
    assert_eq!(report.verdicts.registers.undecided, [0; 0]);
    assert!(report.faults.total() >= plan.events_min);
    // What proves nothing must not look like a proof.
    assert!(report.faults.events.len() >= 10, "kinds of faults");
    assert!(
        report
            .faults
            .events
            .keys()
            .any(|fault| Fault::takes_out(*fault))
    );
    assert!(report.requests(Fate::Acknowledged) >= 500, "requests");
    assert!(report.requests(Fate::Unknown) >= 1, "unknown outcomes");
    assert!(report.counted.elections >= 2, "elections");
    assert!(report.verdicts.checked.writes >= 200);
    assert!(report.verdicts.checked.current_reads >= 50);
    assert!(report.verdicts.checked.other_reads >= 20);
    assert!(report.verdicts.registers.operations >= 50);
    assert!(report.verdicts.set_reads >= 20);
}
