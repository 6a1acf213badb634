//! What processes of this machine take, from `/proc` (Linux; elsewhere nothing is known).

use std::fs;
use std::time::Duration;

/// Processor time of each so far, in user and kernel mode; zero for one that is gone.
#[must_use]
pub fn times(process_ids: &[u32]) -> Vec<Duration> {
    process_ids.iter().map(|id| time(*id)).collect()
}

fn time(process_id: u32) -> Duration {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process_id}/stat")) else {
        return Duration::ZERO;
    };
    // The name in brackets may contain anything, so fields are counted from behind it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND)
}

/// Resident memory in bytes; 0 for a process that is gone.
#[must_use]
pub fn resident_bytes(process_id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// `USER_HZ`, which Linux promises to user space on every machine it runs on today.
const TICKS_PER_SECOND: f64 = 100.0;
