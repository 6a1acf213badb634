//! What the nemesis can do.

/// A kind of fault.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Fault {
    /// SIGKILL, and a start soon after.
    Kill,
    /// The same to all nodes at once.
    KillAll,
    /// The same to the leader.
    KillLeader,
    /// SIGTERM, and a start soon after.
    Stop,
    /// The same to all nodes at once.
    StopAll,
    /// SIGSTOP, and SIGCONT soon after.
    Pause,
    /// The same to the leader.
    PauseLeader,
    /// A node reaches no other one, and none reaches it.
    Isolate,
    /// The same to the leader.
    IsolateLeader,
    /// Two groups of nodes do not reach each other.
    Halves,
    /// Two nodes reach each other only by way of the others.
    Bridge,
    /// A node is heard, and hears nobody.
    Deaf,
    /// A node hears, and is heard by nobody.
    Mute,
    /// A node is cut off and back again, several times in a second.
    Flap,
    /// Some links are slow, unevenly.
    Slow,
    /// All links lose some packets.
    Lossy,
    /// All links carry some packets twice.
    Duplicate,
    /// All links change the order of some packets.
    Reorder,
    /// All links flip a bit in some packets.
    Corrupt,
    /// A node's links carry little.
    Narrow,
    /// Clients and a node do not reach each other, though nodes do.
    ClientsCut,
    /// Clients and nodes lose packets to each other.
    ClientsLossy,
    /// A node's disk is full for a while.
    DiskFull,
    /// A node comes back without its data.
    Wipe,
    /// A bit flips in the database file of a node that works.
    FlipDatabase,
    /// A bit flips in the log of a node that is down.
    FlipLog,
    /// Another node is asked to lead.
    Transfer,
    /// A node is removed, and comes back as a new one without data.
    Replace,
    /// A node is asked for a checkpoint.
    Snapshot,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 29] = [
        Self::Kill,
        Self::KillAll,
        Self::KillLeader,
        Self::Stop,
        Self::StopAll,
        Self::Pause,
        Self::PauseLeader,
        Self::Isolate,
        Self::IsolateLeader,
        Self::Halves,
        Self::Bridge,
        Self::Deaf,
        Self::Mute,
        Self::Flap,
        Self::Slow,
        Self::Lossy,
        Self::Duplicate,
        Self::Reorder,
        Self::Corrupt,
        Self::Narrow,
        Self::ClientsCut,
        Self::ClientsLossy,
        Self::DiskFull,
        Self::Wipe,
        Self::FlipDatabase,
        Self::FlipLog,
        Self::Transfer,
        Self::Replace,
        Self::Snapshot,
    ];

    /// Whether it takes the nodes that it strikes out of the majority.
    #[must_use]
    pub fn takes_out(self) -> bool {
        !matches!(
            self,
            Self::Bridge
                | Self::Slow
                | Self::Lossy
                | Self::Duplicate
                | Self::Reorder
                | Self::Corrupt
                | Self::Narrow
                | Self::ClientsCut
                | Self::ClientsLossy
                | Self::FlipDatabase
                | Self::Transfer
                | Self::Snapshot
        )
    }

    /// Whether it takes all nodes out at once.
    #[must_use]
    pub fn strikes_all(self) -> bool {
        matches!(self, Self::KillAll | Self::StopAll)
    }

    /// Whether a node loses what it had, so that all others must have it.
    #[must_use]
    pub fn loses_data(self) -> bool {
        matches!(
            self,
            Self::Wipe | Self::FlipDatabase | Self::FlipLog | Self::Replace
        )
    }

    /// Whether it is one of links.
    #[must_use]
    pub fn is_of_links(self) -> bool {
        matches!(
            self,
            Self::Isolate
                | Self::IsolateLeader
                | Self::Halves
                | Self::Bridge
                | Self::Deaf
                | Self::Mute
                | Self::Flap
        ) || self.needs_switch()
    }

    /// Whether gates on loopback cannot do it.
    #[must_use]
    pub fn needs_switch(self) -> bool {
        matches!(
            self,
            Self::Slow
                | Self::Lossy
                | Self::Duplicate
                | Self::Reorder
                | Self::Corrupt
                | Self::Narrow
                | Self::ClientsCut
                | Self::ClientsLossy
        )
    }

    /// Whether it strikes the leader, whoever that is.
    #[must_use]
    pub fn strikes_leader(self) -> bool {
        matches!(
            self,
            Self::KillLeader | Self::PauseLeader | Self::IsolateLeader
        )
    }
}
