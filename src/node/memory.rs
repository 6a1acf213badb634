//! How much memory there is.

use std::fs;

/// Bytes of memory that this process can hope for: the machine's, or what its control group is
/// granted if that is less. `None` if the system does not tell.
pub(crate) fn bytes() -> Option<u64> {
    let read = |file| fs::read_to_string(file).ok();
    let machine = read("/proc/meminfo").and_then(|text| total(&text))?;
    let group = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    Some(group.map_or(machine, |group: u64| group.min(machine)))
}

/// `MemTotal` of `/proc/meminfo`.
fn total(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_and_nonsense_is_not() {
        let text = "MemTotal:       24689764 kB\nMemFree:         4512 kB\n";
        assert_eq!(total(text), Some(24_689_764 * 1024));
        assert_eq!(total("MemTotal: many kB"), None);
        assert_eq!(total(""), None);
        assert!(bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
