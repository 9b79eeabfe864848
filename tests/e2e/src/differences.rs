//! The user guide's table of differences between the stage1s (docs/src/walls.md), held against the tests: a test that is for one
//! stage1 alone, or that asks which one is tested, shows a difference, and the table names it.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use crate::workspace;

    /// What is about the tests' own ground, and not about podvm.
    const NO_DIFFERENCE: [&str; 1] = ["kvm::lab::"];

    /// The tests in a file, each with its body.
    fn tests_in(path: &Path) -> Vec<(String, String)> {
        let text = fs::read_to_string(path).unwrap();
        let after: Vec<&str> = text.split("#[test]\n").skip(1).collect();
        let name = |part: &str| {
            let (_, rest) = part.split_once("fn ").unwrap();
            rest.split('(').next().unwrap().to_owned()
        };
        after.iter().map(|part| (name(part), part.split("\n}\n").next().unwrap().to_owned())).collect()
    }

    fn modules(folder: &str) -> Vec<(String, std::path::PathBuf)> {
        let entries = fs::read_dir(workspace().join("tests/e2e/tests").join(folder)).unwrap();
        let files =
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "rs"));
        let stem = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
        files.map(|path| (stem(&path), path)).collect()
    }

    fn shown_in_table() -> BTreeSet<String> {
        let text = fs::read_to_string(workspace().join("docs/src/walls.md")).unwrap();
        let last_cells = text.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.split('|').nth(5));
        last_cells.flat_map(|cell| cell.split('`')).filter(|word| word.contains("::")).map(str::to_owned).collect()
    }

    #[test]
    fn the_guides_table_names_every_difference_that_is_tested_and_no_test_that_is_not_there() {
        let (mut all, mut differing) = (BTreeSet::new(), BTreeSet::new());
        for folder in ["kvm", "ns", ""] {
            for (module, path) in modules(folder) {
                let prefix = if folder.is_empty() { format!("{module}::") } else { format!("{folder}::{module}::") };
                for (test, body) in tests_in(&path) {
                    let name = format!("{prefix}{test}");
                    let differs = !folder.is_empty() || body.contains("stage1()");
                    if differs && !NO_DIFFERENCE.iter().any(|prefix| name.starts_with(prefix)) {
                        differing.insert(name.clone());
                    }
                    all.insert(name);
                }
            }
        }
        let shown = shown_in_table();
        assert_eq!(differing.difference(&shown).collect::<Vec<_>>(), Vec::<&String>::new(), "not in the table");
        assert_eq!(shown.difference(&all).collect::<Vec<_>>(), Vec::<&String>::new(), "in the table, but no test");
    }
}
