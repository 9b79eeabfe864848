//! Reading what Rust's test harness prints when it is called with `--show-output`.

use super::tally::Tally;

/// What a test prints to say that it could not run here.
pub const SKIPPED: &str = "skipped: ";

/// One line of the harness, or of a test.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// `test NAME ... OUTCOME`
    Outcome(&'a str, Outcome<'a>),
    /// `---- NAME stdout ----`: what follows was printed by that test.
    Section(&'a str),
    /// `test result: …`: the harness came to its end.
    Result,
    /// Anything else.
    Other(&'a str),
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome<'a> {
    Passed,
    Failed,
    Ignored(&'a str),
}

/// Enters the outcomes of one or more harness runs, printed one after the other, into `tally`.
/// `prefix` goes before each test's name, to tell the crates apart.
pub fn enter(output: &str, prefix: &str, tally: &mut Tally) {
    let (mut passed, mut section) = (Vec::new(), None);
    let mut failed: Vec<(&str, &str)> = Vec::new();
    let mut skipped: Vec<(&str, &str)> = Vec::new();
    for line in output.lines() {
        match parse(line) {
            Line::Outcome(name, Outcome::Passed) => passed.push(name),
            Line::Outcome(name, Outcome::Failed) => failed.push((name, "")),
            Line::Outcome(name, Outcome::Ignored(reason)) => skipped.push((name, reason)),
            Line::Section(name) => section = Some(name),
            Line::Result => section = None,
            Line::Other(text) => match (section, text.strip_prefix(SKIPPED)) {
                (Some(name), Some(reason)) if passed.contains(&name) => {
                    passed.retain(|other| *other != name);
                    skipped.push((name, reason));
                }
                (Some(name), None) => note_panic(&mut failed, name, text),
                _ => {}
            },
        }
    }
    passed.iter().for_each(|_| tally.pass());
    for (name, reason) in failed {
        tally.fail(&format!("{prefix}{name}"), reason);
    }
    for (name, reason) in skipped {
        tally.skip(&format!("{prefix}{name}"), reason);
    }
}

/// Keeps the first line of a failed test's section that is no harness chatter: usually the panic's message.
fn note_panic<'a>(failed: &mut [(&'a str, &'a str)], name: &str, text: &'a str) {
    let chatter = text.trim().is_empty() || text.starts_with("note: ") || text.starts_with("thread '");
    if let Some((_, reason)) = failed.iter_mut().find(|(other, reason)| *other == name && reason.is_empty())
        && !chatter
    {
        *reason = text;
    }
}

fn parse(line: &str) -> Line<'_> {
    if line.starts_with("test result: ") {
        return Line::Result;
    }
    if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
        return Line::Section(name);
    }
    let outcome = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "));
    let Some((name, outcome)) = outcome else {
        return Line::Other(line);
    };
    // `should panic` and doc tests' `compile fail` are told after a dash.
    let name = name.split(" - should panic").next().unwrap_or(name);
    match outcome.split_once(", ").map_or((outcome, ""), |(outcome, reason)| (outcome, reason)) {
        ("ok", _) => Line::Outcome(name, Outcome::Passed),
        ("FAILED", _) => Line::Outcome(name, Outcome::Failed),
        ("ignored", reason) => Line::Outcome(name, Outcome::Ignored(reason)),
        _ => Line::Other(line),
    }
}

/// The names in the harness's `--list --format terse`.
pub fn listed(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| line.strip_suffix(": test"))
}

/// The reason that one test's own output gives for not having run.
pub fn skip_reason(output: &str) -> Option<&str> {
    // Uncaptured, a test's first line follows its name.
    let own_words = |line: &'_ str| line.rsplit_once(" ... ").map_or(0, |(before, _)| before.len() + " ... ".len());
    output.lines().find_map(|line| line[own_words(line)..].strip_prefix(SKIPPED).or_else(|| line.strip_prefix(SKIPPED)))
}

/// The line of one test's output that says best why it failed: what the panic said.
pub fn failure_reason(output: &str) -> Option<&str> {
    let after_panic = output.lines().skip_while(|line| !line.contains("panicked at ")).skip(1);
    after_panic.map(str::trim).find(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 5 tests
test a::passes ... ok
test a::needs_root ... ok
test b::later - should panic ... ok
test b::waits ... ignored, needs a tape drive
test c::breaks ... FAILED

successes:

---- a::needs_root stdout ----
skipped: not root

---- a::passes stdout ----
skipped steps: none

successes:
    a::passes

failures:

---- c::breaks stdout ----

thread 'c::breaks' panicked at src/lib.rs:4:9:
three is not four
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace

failures:
    c::breaks

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn outcomes_and_reasons_are_read() {
        let mut tally = Tally::default();
        enter(OUTPUT, "crate: ", &mut tally);
        let text = format!("{tally:?}");
        assert!(text.contains("passed: 2"), "{text}");
        for part in ["crate: c::breaks", "three is not four", "crate: a::needs_root", "not root", "needs a tape drive"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn names_are_listed_without_benchmarks() {
        assert_eq!(listed("a::b: test\nc: benchmark\n").collect::<Vec<_>>(), ["a::b"]);
    }

    #[test]
    fn a_skipped_test_says_so_on_a_line_of_its_own_or_behind_its_name() {
        assert_eq!(skip_reason("running 1 test\ntest a::b ... skipped: no cgroup2\nok\n"), Some("no cgroup2"));
        assert_eq!(skip_reason("test a::b ... \nskipped: not root\nok\n"), Some("not root"));
        assert_eq!(skip_reason("test a::b ... ok\n"), None);
    }

    #[test]
    fn a_panics_message_is_the_reason() {
        assert_eq!(failure_reason("x\nthread 'a' (7) panicked at f.rs:1:2:\nnot equal\n"), Some("not equal"));
        assert_eq!(failure_reason("killed\n"), None);
    }
}
