//! `pathWhitelist`: the only paths of an image that exist when it and its dependencies are put together (App Container
//! specification, ace.md, "Filesystem Setup").

use std::collections::BTreeSet;

/// The paths of a whitelist, and the directories that lead to them.
#[derive(Debug, Default)]
pub struct Whitelist {
    paths: BTreeSet<Vec<u8>>,
    parents: BTreeSet<Vec<u8>>,
}

impl Whitelist {
    /// Reads a manifest's list.
    pub fn new(listed: &[String]) -> Self {
        let mut whitelist = Self::default();
        for path in listed {
            let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
            for count in 1..parts.len() {
                whitelist.parents.insert(parts[..count].join("/").into_bytes());
            }
            whitelist.paths.insert(parts.join("/").into_bytes());
        }
        whitelist
    }

    /// Whether a path, which begins without a slash, exists: listed, or a directory on the way to what is.
    pub fn keeps(&self, path: &[u8], is_directory: bool) -> bool {
        self.paths.contains(path) || is_directory && self.parents.contains(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_paths_and_the_directories_to_them_exist() {
        let whitelist = Whitelist::new(&["/etc/ca/crt".into(), "/opt//x/".into(), "/".into()]);
        for (path, is_directory, expected) in [
            ("etc/ca/crt", false, true),
            ("etc/ca", true, true),
            ("etc", true, true),
            ("etc", false, false),
            ("etc/ca/key", false, false),
            ("opt/x", true, true),
            ("opt/x/inner", false, false),
        ] {
            assert_eq!(whitelist.keeps(path.as_bytes(), is_directory), expected, "{path}");
        }
    }
}
