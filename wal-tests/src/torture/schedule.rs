//! Which faults, how often, for how long.

use std::time::Duration;

use super::fault::Fault::{
    self, Bridge, ClientsCut, ClientsLossy, Corrupt, Deaf, DiskFull, Duplicate, Flap, FlipDatabase,
    FlipLog, Halves, Isolate, IsolateLeader, Kill, KillAll, KillLeader, Lossy, Mute, Narrow, Pause,
    PauseLeader, Reorder, Replace, Slow, Snapshot, Stop, StopAll, Transfer, Wipe,
};
use crate::seed::Random;

/// A named schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    name: &'static str,
    faults: Vec<Fault>,
    /// From the begin of one fault to that of the next.
    gap: (Duration, Duration),
    /// How long one lasts.
    length: (Duration, Duration),
    /// Nodes that may be out at a time; `None` is all but a majority.
    out_max: Option<usize>,
}

impl Schedule {
    /// The schedule of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let (name, faults) = TABLE.into_iter().find(|(found, _)| *found == name)?;
        let millis = Duration::from_millis;
        let (gap, length) = match name {
            "short" => ((100, 700), (200, 1500)),
            _ => ((200, 2600), (200, 4000)),
        };
        Some(Self {
            name,
            faults: faults.to_vec(),
            gap: (millis(gap.0), millis(gap.1)),
            length: (millis(length.0), millis(length.1)),
            out_max: (name == "blackout").then_some(usize::MAX),
        })
    }

    /// All names, for people.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        TABLE.iter().map(|(name, _)| *name).collect()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether nodes need disks of their own.
    #[must_use]
    pub fn needs_disks(&self) -> bool {
        self.faults.contains(&DiskFull)
    }

    /// How many of so many nodes may be out at a time.
    #[must_use]
    pub fn out_max(&self, nodes: usize) -> usize {
        self.out_max.unwrap_or((nodes - 1) / 2)
    }

    pub(super) fn faults(&self) -> &[Fault] {
        &self.faults
    }

    pub(super) fn gap(&self, random: &mut Random) -> Duration {
        between(self.gap, random)
    }

    pub(super) fn length(&self, random: &mut Random) -> Duration {
        between(self.length, random)
    }
}

fn between((least, most): (Duration, Duration), random: &mut Random) -> Duration {
    let share = u32::try_from(random.below(1000)).expect("it is below 1000");
    least + (most - least) * share / 1000
}

/// Name and faults. `short` is for where there is little time; in `blackout` there need not be a
/// majority.
const TABLE: [(&str, &[Fault]); 9] = [
    ("all", &Fault::ALL),
    ("short", &Fault::ALL),
    (
        "processes",
        &[
            Kill,
            KillAll,
            KillLeader,
            Stop,
            StopAll,
            Pause,
            PauseLeader,
            Transfer,
        ],
    ),
    (
        "partitions",
        &[
            Isolate,
            IsolateLeader,
            Halves,
            Bridge,
            Deaf,
            Mute,
            Flap,
            ClientsCut,
        ],
    ),
    (
        "packets",
        &[
            Slow,
            Lossy,
            Duplicate,
            Reorder,
            Corrupt,
            Narrow,
            ClientsLossy,
        ],
    ),
    (
        "disks",
        &[
            DiskFull,
            Wipe,
            FlipDatabase,
            FlipLog,
            Snapshot,
            KillLeader,
            KillAll,
        ],
    ),
    (
        "members",
        &[Replace, Wipe, Transfer, Kill, IsolateLeader, Snapshot, Stop],
    ),
    (
        "blackout",
        &[KillAll, Isolate, IsolateLeader, Halves, Pause, Kill],
    ),
    ("none", &[]),
];
