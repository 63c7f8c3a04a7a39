//! How much memory this process may have: that of the machine, or of its control group.

use std::fs;
use std::path::{Path, PathBuf};

/// Largest default of the budget.
const MOST: usize = 1 << 30;

/// The default where the system does not say how much memory there is.
const UNKNOWN: usize = 256 << 20;

/// The default of the budget: a quarter of the memory of the machine or of the control group, at most 1 GiB.
#[must_use]
pub(crate) fn default_bytes() -> usize {
    memory(Path::new("/")).map_or(UNKNOWN, |memory| usize::try_from(memory / 4).unwrap_or(MOST)).min(MOST)
}

/// The memory of the machine, or of the narrowest control group of this process. `root` is the root of the file system.
fn memory(root: &Path) -> Option<u64> {
    let limits = control_groups(root).into_iter().filter_map(|file| number(&file));
    limits.chain(machine(root)).min()
}

/// The number in a file; `None` for `max`, which is no limit.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The memory of the machine (proc_meminfo(5)).
fn machine(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files that may hold a limit of this process, of both versions of control groups (cgroups(7)).
///
/// A group is bound by the limits of all groups above it. In a container its path may name directories that are not
/// visible: the root holds the limit of the container then.
fn control_groups(root: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut files = Vec::new();
    for line in text.lines() {
        // hierarchy-ID:controller-list:cgroup-path
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (mount, file) = match (id, controllers) {
            ("0", "") => ("sys/fs/cgroup", "memory.max"),
            (_, list) if list.split(',').any(|controller| controller == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(path.trim_start_matches('/'));
        files.extend(group.ancestors().map(|group| root.join(mount).join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:        4096 kB\nMemFree: 1 kB\n");

    /// The memory that a system with these files has.
    fn memory_of(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        memory(root.path())
    }

    #[test]
    fn without_a_control_group_it_is_the_memory_of_the_machine() {
        assert_eq!(memory_of(&[MACHINE]), Some(4096 * 1024));
        assert_eq!(memory_of(&[]), None);
        assert_eq!(memory_of(&[("proc/meminfo", "MemTotal: lots\n")]), None);
    }

    #[test]
    fn of_version_2_the_narrowest_limit_above_the_process_counts() {
        let group = ("proc/self/cgroup", "0::/system.slice/broker.service\n");
        let own = |text| ("sys/fs/cgroup/system.slice/broker.service/memory.max", text);
        let slice = |text| ("sys/fs/cgroup/system.slice/memory.max", text);
        assert_eq!(memory_of(&[MACHINE, group, own("max\n"), slice("1000\n")]), Some(1000));
        assert_eq!(memory_of(&[MACHINE, group, own("500\n"), slice("1000\n")]), Some(500));
        assert_eq!(memory_of(&[MACHINE, group, own("max\n")]), Some(4096 * 1024));
        assert_eq!(
            memory_of(&[MACHINE, group, ("sys/fs/cgroup/memory.max", "700\n")]),
            Some(700),
            "a container"
        );
    }

    #[test]
    fn version_1_says_it_in_a_hierarchy_of_its_own() {
        let group = ("proc/self/cgroup", "5:cpu,cpuacct:/other\n4:memory:/docker/1f\n0::/\n");
        let limit = |text| ("sys/fs/cgroup/memory/docker/1f/memory.limit_in_bytes", text);
        assert_eq!(memory_of(&[MACHINE, group, limit("2000\n")]), Some(2000));
        // No limit is a number beyond all memory.
        assert_eq!(memory_of(&[MACHINE, group, limit("9223372036854771712\n")]), Some(4096 * 1024));
    }

    #[test]
    fn the_default_is_at_most_one_gibibyte() {
        assert!((1..=MOST).contains(&default_bytes()));
    }
}
