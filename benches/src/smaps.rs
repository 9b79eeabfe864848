//! What a monitor holds of memory beside its guest's, from `/proc/PID/smaps` (proc_pid_smaps(5)).

use std::path::Path;

/// Resident memory in KiB that is not the guest's.
///
/// The guest's are the mappings that the monitor advised the kernel to use huge pages for (flag `hg`), as every monitor here
/// does for guest memory and nothing else, and the kernel and initramfs files where they are mapped into the guest.
pub fn resident_beyond_guest_kib(smaps: &str, guest_files: &[&Path]) -> u64 {
    let mut total = 0;
    let mut mapping = Mapping::default();
    for line in smaps.lines() {
        if let Some(path) = mapping_path(line) {
            total += mapping.own_kib();
            mapping = Mapping { guest: guest_files.iter().any(|file| Path::new(path) == *file), resident_kib: 0 };
        } else if let Some(value) = line.strip_prefix("Rss:") {
            mapping.resident_kib = value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            mapping.guest |= flags.split_whitespace().any(|flag| flag == "hg");
        }
    }
    total + mapping.own_kib()
}

#[derive(Default)]
struct Mapping {
    guest: bool,
    resident_kib: u64,
}

impl Mapping {
    fn own_kib(&self) -> u64 {
        if self.guest { 0 } else { self.resident_kib }
    }
}

/// The file (or nothing) of the mapping that a line such as `55d0c000-55d0d000 r--p 00000000 fe:00 123 /bin/x` begins.
fn mapping_path(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    u64::from_str_radix(start, 16).ok()?;
    u64::from_str_radix(end, 16).ok()?;
    Some(words.nth(4).unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_and_guest_files_do_not_count() {
        let smaps = "\
00400000-00500000 r-xp 00000000 fe:00 12 /usr/bin/boot
Rss:                 700 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Rss:               50000 kB
VmFlags: rd wr mr mw me nr dd hg
7f0010000000-7f0010100000 r--p 00000000 fe:00 13 /boot/vmlinux
Rss:                1000 kB
VmFlags: rd mr mw me
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
Rss:                  24 kB
VmFlags: rd wr mr mw me gd ac
";
        assert_eq!(resident_beyond_guest_kib(smaps, &[Path::new("/boot/vmlinux")]), 724);
        assert_eq!(resident_beyond_guest_kib(smaps, &[]), 1724);
    }
}
