//! Counting tests, and saying at the end what did not pass.

/// What became of the tests so far.
#[derive(Debug, Default)]
pub struct Tally {
    passed: usize,
    failures: Vec<Noted>,
    skips: Vec<Noted>,
    second_tries: Vec<Noted>,
}

#[derive(Debug)]
struct Noted {
    name: String,
    reason: String,
}

impl Tally {
    /// A test passed.
    pub fn pass(&mut self) {
        self.passed += 1;
    }

    /// A test failed; the reason's first line is repeated at the end.
    pub fn fail(&mut self, name: &str, reason: &str) {
        self.failures.push(Noted { name: name.into(), reason: first_line(reason) });
    }

    /// A test did not run.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skips.push(Noted { name: name.into(), reason: first_line(reason) });
    }

    /// A test failed, for this reason, and passed when it was run once more.
    pub fn note_second_try(&mut self, name: &str, reason: &str) {
        self.second_tries.push(Noted { name: name.into(), reason: first_line(reason) });
    }

    /// How many tests failed so far.
    pub fn failures(&self) -> usize {
        self.failures.len()
    }

    /// Whether any test failed.
    pub fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Lists what was skipped and what failed, then prints the counts as the last line.
    pub fn print(&self) {
        let second = ("passed only when run once more", &self.second_tries);
        for (title, notes) in [("skipped", &self.skips), second, ("failed", &self.failures)] {
            if !notes.is_empty() {
                println!("{title}:");
            }
            for note in notes {
                println!("    {}: {}", note.name, note.reason);
            }
        }
        println!("{}", self.counts());
    }

    fn counts(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failures.len(), self.skips.len())
    }
}

fn first_line(text: &str) -> String {
    text.trim().lines().next().unwrap_or("no reason was given").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_have_the_form_that_is_read_by_machines() {
        let mut tally = Tally::default();
        tally.pass();
        tally.skip("a", "no KVM\nmore");
        tally.fail("b", "");
        assert_eq!(tally.counts(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(tally.skips[0].reason, "no KVM");
        assert!(tally.failed());
    }
}
