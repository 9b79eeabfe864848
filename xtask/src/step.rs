//! Steps that say what they do, and how long it took.

use std::time::{Duration, Instant};

/// Runs one step of a command, with its name before and its time after it.
pub fn step<T>(name: &str, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    println!("==> {name}");
    let done = act();
    let outcome = if done.is_ok() { "done" } else { "FAILED" };
    println!("    {outcome}: {name} ({})", seconds(start.elapsed()));
    done
}

/// A time as people read it.
pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        whole => format!("{} min {} s", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_told_from_seconds() {
        assert_eq!(seconds(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
    }
}
