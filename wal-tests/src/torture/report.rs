//! What a run shows.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::Plan;
use super::clients::Tally;
use super::fault::Fault;
use super::nemesis::Struck;
use super::sampler::Counted;
use crate::checker::{self, append, register, set, witness};
use crate::history::Fate;
use crate::network::Counts;

/// A run and its verdict.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was to be run.
    pub plan: Plan,
    /// What was between the nodes.
    pub network: &'static str,
    /// What became of the frames, where there was a switch.
    pub frames: Option<Counts>,
    /// What the nemesis did.
    pub faults: Struck,
    /// What clients were told.
    pub tally: Tally,
    /// What the nodes counted.
    pub counted: Counted,
    /// Bytes of the page images that were compared.
    pub image_bytes: usize,
    /// How long it all took.
    pub time: Duration,
    /// How long the checkers took of that.
    pub checking: Duration,
    /// What they found.
    pub verdicts: Verdicts,
}

/// What the checkers found.
#[derive(Clone, Debug)]
pub struct Verdicts {
    /// By the order that the server gives.
    pub witness: Vec<witness::Violation>,
    /// How much that one checked.
    pub checked: witness::Checked,
    /// Of single registers.
    pub registers: register::Verdict,
    /// Of lists.
    pub lists: Vec<append::Anomaly>,
    /// Of sets and balances.
    pub sets: Vec<set::Anomaly>,
    /// Reads of sets and balances that were checked.
    pub set_reads: usize,
    /// Of queued rows.
    pub queue: Vec<checker::Violation>,
    /// Queued rows.
    pub queued: usize,
}

impl Verdicts {
    /// Everything that is wrong, as texts.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong: Vec<String> = Vec::new();
        wrong.extend(self.witness.iter().map(|it| format!("witness: {it:?}")));
        let registers = self.registers.wrong.iter();
        wrong.extend(registers.map(|key| format!("register {key}: no order explains it")));
        wrong.extend(self.lists.iter().map(|it| format!("lists: {it:?}")));
        wrong.extend(self.sets.iter().map(|it| format!("sets: {it:?}")));
        wrong.extend(self.queue.iter().map(|it| format!("queue: {it:?}")));
        wrong
    }
}

impl Report {
    /// Everything that is wrong, as texts; none is what one wants to see.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = self.verdicts.wrong();
        let malformed = self.tally.malformed.iter();
        wrong.extend(malformed.map(|what| format!("answer: {what}")));
        let ended = self.faults.unexpected_ends.iter();
        wrong.extend(ended.map(|what| format!("process: {what}")));
        wrong
    }

    /// Requests of this fate.
    #[must_use]
    pub fn requests(&self, fate: Fate) -> usize {
        let tally = self.tally.requests.iter();
        let of_fate = tally.filter(|((_, found), _)| *found == fate);
        of_fate.map(|(_, count)| count).sum()
    }

    fn requests_by_kind(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        for ((kind, fate), count) in &self.tally.requests {
            let at = match fate {
                Fate::Acknowledged => 0,
                Fate::Refused => 1,
                Fate::Unknown => 2,
            };
            kinds.entry(kind).or_default()[at] += count;
        }
        writeln!(
            f,
            "{:28}{:>13}{:>9}{:>9}",
            "requests", "acknowledged", "refused", "unknown"
        )?;
        let total = [Fate::Acknowledged, Fate::Refused, Fate::Unknown].map(|it| self.requests(it));
        for (kind, counts) in kinds.into_iter().chain([("all", total)]) {
            let [acknowledged, refused, unknown] = counts;
            writeln!(f, "  {kind:26}{acknowledged:13}{refused:9}{unknown:9}")?;
        }
        Ok(())
    }

    fn faults_by_kind(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "faults: {}", self.faults.total())?;
        let mut line = String::new();
        for fault in Fault::ALL {
            let count = self.faults.events.get(&fault).copied().unwrap_or(0);
            let next = format!("{fault:?} {count}");
            if line.len() + next.len() > 88 {
                writeln!(f, "  {line}")?;
                line.clear();
            }
            line = if line.is_empty() {
                next
            } else {
                format!("{line}, {next}")
            };
        }
        writeln!(f, "  {line}")
    }

    fn what_happened(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = &self.counted;
        let unknown = self.requests(Fate::Unknown);
        let all = unknown + self.requests(Fate::Acknowledged) + self.requests(Fate::Refused);
        writeln!(f, "what must have happened for all this to prove anything")?;
        let rows = [
            ("elections", counted.elections as u64),
            ("databases installed", counted.installs),
            ("entries cut off the end of logs", counted.truncations),
            ("transactions discarded", counted.discarded),
            ("damaged pages found", counted.damaged),
            ("damaged pages mended", counted.repaired),
            ("checkpoints", counted.checkpoints),
            ("processes", counted.processes as u64),
        ];
        for (name, count) in rows {
            writeln!(f, "  {name:36}{count:9}")?;
        }
        let percent = 100.0 * unknown as f64 / all.max(1) as f64;
        writeln!(f, "  {:36}{unknown:9} ({percent:.1} %)", "outcomes unknown")?;
        if let Some(frames) = self.frames {
            let Counts {
                carried,
                lost,
                duplicated,
                reordered,
                corrupted,
            } = frames;
            writeln!(
                f,
                "  frames: {carried} carried, {lost} lost, {duplicated} twice, {reordered} out of \
                 order, {corrupted} with a bit flipped"
            )?;
        }
        writeln!(f, "  the most frequent reasons not to acknowledge:")?;
        let mut reasons: Vec<_> = self.tally.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (reason, count) in reasons.into_iter().take(8) {
            writeln!(f, "  {count:9}  {}", reason.replace('\n', " "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        writeln!(
            f,
            "schedule {}, seed {}, {} nodes, {} clients, {}, {:.0} s",
            plan.schedule.name(),
            plan.seed,
            plan.nodes,
            plan.clients,
            self.network,
            self.time.as_secs_f64()
        )?;
        self.requests_by_kind(f)?;
        self.faults_by_kind(f)?;
        self.what_happened(f)?;
        let verdicts = &self.verdicts;
        let checked = &verdicts.checked;
        let registers = &verdicts.registers;
        writeln!(f, "checkers ({:.1} s)", self.checking.as_secs_f64())?;
        writeln!(
            f,
            "  index witness: {} violations in {} writes, {} of unknown fate that were done, {} \
             reads of the newest, {} other reads",
            verdicts.witness.len(),
            checked.writes,
            checked.unknown_done,
            checked.current_reads,
            checked.other_reads
        )?;
        writeln!(
            f,
            "  registers: {} wrong, {} undecided, {} right; {} operations",
            registers.wrong.len(),
            registers.undecided.len(),
            registers.right,
            registers.operations
        )?;
        writeln!(f, "  lists: {} anomalies", verdicts.lists.len())?;
        let (sets, reads) = (verdicts.sets.len(), verdicts.set_reads);
        writeln!(f, "  sets and balances: {sets} anomalies in {reads} reads")?;
        let (queue, queued) = (verdicts.queue.len(), verdicts.queued);
        writeln!(f, "  queue: {queue} violations in {queued} rows")?;
        writeln!(
            f,
            "  page images: equal on all nodes, {} bytes each",
            self.image_bytes
        )?;
        let wrong = self.wrong();
        for what in wrong.iter().take(50) {
            writeln!(f, "WRONG: {what}")?;
        }
        match wrong.len() {
            0 => write!(f, "verdict: nothing wrong found"),
            count => write!(f, "verdict: {count} things wrong"),
        }
    }
}
