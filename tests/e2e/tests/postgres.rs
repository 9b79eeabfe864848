//! PostgreSQL, as a user of its own, its database on the pod's writable disk.

use std::time::Duration;

use podvm_e2e::{Host, wait_for};

const A_WHILE: Duration = Duration::from_secs(400);

#[test]
fn postgres_makes_its_database_and_answers() {
    let host = Host::new();
    let image = host.image("postgres");
    let started = host.podvm(["run", "--detach", "--net=none", &image]).run();
    let uuid = started.expect_code(0).stdout.trim().to_owned();
    let query = |text: &str| {
        let words = ["exec", &uuid, "--", "psql", "-h", "/tmp", "-U", "postgres", "-At", "-c", text];
        let finished = host.podvm(words).run();
        finished.status.success().then_some(finished.stdout)
    };
    wait_for("postgres answers", A_WHILE, || query("select 1"));
    assert!(query("create table t as select generate_series(1, 1000) as n").is_some());
    assert_eq!(query("select count(*), sum(n) from t").as_deref(), Some("1000|500500\n"));
    host.podvm(["stop", "--time", "60s", &uuid]).run().expect_code(0);
    host.podvm(["status", &uuid]).run().expect_stdout("exited (0)");
}
