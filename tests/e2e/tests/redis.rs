//! redis under its own load generator.

use std::time::Duration;

use podvm_e2e::{Host, wait_for};

const A_WHILE: Duration = Duration::from_secs(120);

#[test]
fn redis_serves_its_benchmark_in_the_pod() {
    let host = Host::new();
    let image = host.image("redis");
    let started = host.podvm(["run", "--detach", "--port", "6379:6379", &image]).run();
    let uuid = started.expect_code(0).stdout.trim().to_owned();
    let ping = || host.podvm(["exec", &uuid, "--", "redis-cli", "ping"]).run();
    wait_for("redis answers", A_WHILE, || ping().stdout.contains("PONG").then_some(()));
    let words = ["exec", &uuid, "--", "redis-benchmark", "-t", "set,get", "-n", "2000", "-c", "10", "-q"];
    let finished = host.podvm(words).time_limit(Duration::from_secs(300)).run().expect_code(0);
    for name in ["SET:", "GET:"] {
        assert!(finished.stdout.contains(name), "{finished}");
    }
    host.podvm(["stop", &uuid]).run().expect_code(0);
}
