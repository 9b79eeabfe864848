//! How image layers come into a VM: mapped, so that pods of one image share them, or as a disk.

use std::fs;
use std::time::Duration;

use podvm_e2e::{Host, is_emulated, wait_for};

const A_WHILE: Duration = Duration::from_secs(240);
/// Pods of one image at once; on an emulated machine, where each takes its time, [`FEW_PODS`].
const PODS: usize = 10;
const FEW_PODS: usize = 3;
/// Most KiB of a pod's memory that no other pod has, when it is not the first of its image; with a disk it is some 69,000 for etcd.
const MOST_PRIVATE_KIB: u64 = 56 << 10;
/// Least KiB that such a pod shares with the others: of etcd's program what it has touched.
const LEAST_SHARED_KIB: u64 = 12 << 10;

/// A field of what the kernel sums up of a process's memory, in KiB.
fn memory_kib(pid: u64, fields: &[&str]) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let value = |field: &&str| -> u64 {
        let line = rollup.lines().find_map(|line| line.strip_prefix(*field)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    fields.iter().map(value).sum()
}

#[test]
fn pods_of_one_image_share_what_they_read_of_it() {
    let host = Host::new();
    let image = host.image("etcd");
    let count = if is_emulated() { FEW_PODS } else { PODS };
    for _ in 0..count {
        let started = host.podvm(["run", "--detach", "--net=none", &image]).time_limit(A_WHILE).run().expect_code(0);
        let pod = started.stdout.trim().to_owned();
        wait_for("etcd serves", A_WHILE, || {
            let logs = host.podvm(["logs", &pod]).run();
            format!("{}{}", logs.stdout, logs.stderr).contains("ready to serve client requests").then_some(())
        });
    }
    let listed = host.podvm(["list", "--output", "json"]).run().expect_code(0).json();
    let pids: Vec<u64> = listed.as_array().unwrap().iter().filter_map(|pod| pod["pid"].as_u64()).collect();
    assert_eq!(pids.len(), count, "{listed}");
    for pid in pids {
        let private = memory_kib(pid, &["Private_Clean:", "Private_Dirty:"]);
        let shared = memory_kib(pid, &["Shared_Clean:", "Shared_Dirty:"]);
        assert!(private <= MOST_PRIVATE_KIB, "{private} KiB of a pod are its own, {shared} KiB are shared");
        assert!(shared >= LEAST_SHARED_KIB, "{shared} KiB of a pod are shared, {private} KiB are its own");
    }
}

#[test]
fn layers_are_mapped_or_a_disk_as_the_setting_says() {
    let host = Host::new();
    let image = host.image("busybox");
    let config = host.scratch().join("config.toml");
    // A file's sum shows that what is mapped is the file.
    let script = "cat /proc/partitions; md5sum /bin/busybox";
    let look = |setting: &str, options: &[&str]| {
        fs::write(&config, format!("layers = \"{setting}\"\n")).unwrap();
        let mut words = vec!["--config", config.to_str().unwrap(), "run", "--rm", "--net=none"];
        words.extend(options);
        words.extend([image.as_str(), "--", "sh", "-c", script]);
        let finished = host.podvm(words).run().expect_code(0);
        let sum = finished.stdout.lines().last().unwrap().to_owned();
        (finished.stdout.contains("pmem0p1"), sum)
    };
    let (mapped, sum) = look("memory", &[]);
    assert!(mapped);
    assert_eq!(look("auto", &[]), (true, sum.clone()));
    assert_eq!(look("disk", &[]), (false, sum));
    fs::write(&config, "layers = \"tape\"\n").unwrap();
    let refused = host.podvm(["--config", config.to_str().unwrap(), "run", &image]).run();
    refused.expect_code(254).expect_stderr("tape").expect_stderr("`memory`");
}
