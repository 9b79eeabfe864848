//! Names of appc images, as users write them: `coreos.com/etcd,version=v2.2.0,os=linux` or `coreos.com/etcd:v2.2.0`.
//!
//! Names and labels are *AC identifiers* (App Container specification, types.md); a label's value is any text.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::oci::host_architecture;

/// Longest identifier: that of a host and a path.
const MAX_IDENTIFIER: usize = 255;
/// Label of an image's version.
pub const VERSION: &str = "version";
/// Label of the operating system.
pub const OS: &str = "os";
/// Label of the architecture.
pub const ARCH: &str = "arch";

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// An image's name, and the labels that it must have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AppcName {
    /// The name proper, an AC identifier.
    pub name: String,
    /// Labels.
    pub labels: Labels,
}

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppcNameError {
    /// Not an identifier.
    #[error(
        "{text:?}: {part:?} is no appc identifier; use lower-case letters and digits, with single . - _ ~ / between them"
    )]
    Identifier {
        /// The whole text.
        text: String,
        /// What is wrong in it.
        part: String,
    },
    /// What stands behind a comma has no equals sign.
    #[error("{text:?}: {part:?} is no label; write NAME,LABEL=VALUE, such as example.com/app,version=1.0")]
    Label {
        /// The whole text.
        text: String,
        /// What is wrong in it.
        part: String,
    },
    /// A label that is there already, or would be taken for the name.
    #[error("{text:?}: the label {label} is given twice, or would be taken for the name; leave one out")]
    Twice {
        /// The whole text.
        text: String,
        /// The label.
        label: String,
    },
}

/// Whether this is an AC identifier.
pub fn is_identifier(text: &str) -> bool {
    is_made_of(text, |byte| b"-._~/".contains(&byte))
}

/// Whether this is an AC name.
pub fn is_name(text: &str) -> bool {
    is_made_of(text, |byte| byte == b'-')
}

/// Lower-case letters and digits, with single separators between them.
fn is_made_of(text: &str, is_separator: impl Fn(u8) -> bool) -> bool {
    let mut after_word = false;
    let fits = text.bytes().all(|byte| {
        let is_word = byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = is_word || after_word && is_separator(byte);
        after_word = is_word;
        fits
    });
    fits && after_word && text.len() <= MAX_IDENTIFIER
}

impl AppcName {
    /// With the labels of this host where nothing is said of them: what a fetch looks for.
    pub fn for_this_host(&self) -> Self {
        let mut name = self.clone();
        let add = |labels: &mut Labels, label: &str, value: &str| {
            labels.entry(label.to_owned()).or_insert_with(|| value.to_owned());
        };
        add(&mut name.labels, OS, "linux");
        add(&mut name.labels, ARCH, host_architecture());
        name
    }

    /// Whether an image of this name and these labels is meant: it has every label that is asked for.
    pub fn means(&self, name: &str, labels: &Labels) -> bool {
        self.name == name && self.labels.iter().all(|(label, value)| labels.get(label) == Some(value))
    }
}

/// `NAME[:VERSION][,LABEL=VALUE]…`.
impl FromStr for AppcName {
    type Err = AppcNameError;

    fn from_str(text: &str) -> Result<Self, AppcNameError> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (name, version) = first.split_once(':').map_or((first, None), |(name, version)| (name, Some(version)));
        let identifier = |part: &str| match is_identifier(part) {
            true => Ok(part.to_owned()),
            false => Err(AppcNameError::Identifier { text: text.to_owned(), part: part.to_owned() }),
        };
        let mut labels = Labels::new();
        labels.extend(version.map(|version| (VERSION.to_owned(), version.to_owned())));
        for part in parts {
            let is_label = part.split_once('=').filter(|(label, value)| !label.is_empty() && !value.is_empty());
            let (label, value) =
                is_label.ok_or_else(|| AppcNameError::Label { text: text.to_owned(), part: part.to_owned() })?;
            let known = labels.insert(identifier(label)?, value.to_owned());
            if known.is_some() || label == "name" {
                return Err(AppcNameError::Twice { text: text.to_owned(), label: label.to_owned() });
            }
        }
        Ok(Self { name: identifier(name)?, labels })
    }
}

/// The version first, then the other labels by name.
impl fmt::Display for AppcName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        let version = self.labels.get_key_value(VERSION).into_iter();
        for (label, value) in version.chain(self.labels.iter().filter(|(label, _)| *label != VERSION)) {
            write!(f, ",{label}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> AppcName {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_read_with_version_and_labels() {
        let name = parse("coreos.com/etcd,version=v2.2.0-alpha.0,os=linux,arch=amd64");
        assert_eq!(name.name, "coreos.com/etcd");
        assert_eq!(name.labels["version"], "v2.2.0-alpha.0");
        assert_eq!(name.to_string(), "coreos.com/etcd,version=v2.2.0-alpha.0,arch=amd64,os=linux");
        assert_eq!(parse("coreos.com/etcd:v2").to_string(), "coreos.com/etcd,version=v2");
        assert_eq!(parse("a").for_this_host().labels["os"], "linux");
    }

    #[test]
    fn what_is_no_name_is_named() {
        for (text, part) in [
            ("", "no appc identifier"),
            ("Example.com/x", "Example.com/x"),
            ("example.com/", "example.com/"),
            ("example.com//x", "no appc identifier"),
            ("-x", "no appc identifier"),
            ("x,version", "no label"),
            ("x,version=", "no label"),
            ("x,=1", "no label"),
            ("x,Os=linux", "\"Os\""),
            ("x,os=a,os=b", "twice"),
            ("x:1,version=2", "twice"),
            ("x,name=y", "taken for the name"),
        ] {
            let message = text.parse::<AppcName>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn an_image_is_meant_when_it_has_every_label_that_is_asked_for() {
        let image = parse("a/b,version=1,os=linux");
        for (wanted, expected) in [
            ("a/b", true),
            ("a/b:1", true),
            ("a/b,os=linux,version=1", true),
            ("a/b:2", false),
            ("a/b,x=1", false),
            ("a", false),
        ] {
            assert_eq!(parse(wanted).means(&image.name, &image.labels), expected, "{wanted}");
        }
    }

    proptest! {
        #[test]
        fn what_is_displayed_parses_back(text in "[a-z0-9]{1,5}([-._~/][a-z0-9]{1,5}){0,4}(:[^,]{1,8})?(,[a-z]{1,3}[0-9]=[^,]{1,8})?") {
            let name = parse(&text);
            prop_assert_eq!(parse(&name.to_string()), name);
        }

        #[test]
        fn any_text_is_answered_without_panic(text in "[a-z0-9A-Z:/,=._~é -]{0,60}") {
            let _ = text.parse::<AppcName>();
        }
    }
}
