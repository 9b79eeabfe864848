//! Names of apps and volumes.
//!
//! Both follow the rule of appc's AC Name (appc spec, "AC Name Type"): lower-case letters, digits and single `-`
//! between them. Such a name is safe as a file name, a cgroup name and a virtio-fs tag.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name; a virtio-fs tag has 36 bytes.
pub const MAX_NAME_LENGTH: usize = 36;

/// Why a word is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than [`MAX_NAME_LENGTH`].
    #[error("the name {0:?} is longer than {MAX_NAME_LENGTH} characters; choose a shorter one")]
    TooLong(String),
    /// A character, or a dash's place, that the rule does not allow.
    #[error("{0:?} is no name: use lower-case letters and digits, with single dashes between them")]
    Malformed(String),
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME_LENGTH {
        return Err(NameError::TooLong(name.into()));
    }
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !plain || name.starts_with('-') || name.ends_with('-') || name.contains("--") {
        return Err(NameError::Malformed(name.into()));
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                check(name).map(|()| Self(name.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                check(&name).map(|()| Self(name))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// Name of an app, unique within its pod.
    AppName
);
name_type!(
    /// Name of a volume, unique within its pod.
    VolumeName
);

impl AppName {
    /// A name made from any text, such as the last part of an image's name: what the rule forbids becomes a dash.
    pub fn from_lossy(text: &str) -> Self {
        let mut name = String::new();
        for c in text.chars().map(|c| c.to_ascii_lowercase()) {
            let wanted = if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
            if wanted != '-' || !(name.is_empty() || name.ends_with('-')) {
                name.push(wanted);
            }
        }
        name.truncate(MAX_NAME_LENGTH);
        let name = name.trim_end_matches('-');
        Self(if name.is_empty() { "app".into() } else { name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_other_characters_are_refused() {
        for bad in ["", "-a", "a-", "a--b", "A", "a/b", "..", "a b", &"a".repeat(37)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad:?} was taken");
        }
        for good in ["a", "etcd", "data-dir", "0-9"] {
            assert_eq!(good.parse::<VolumeName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn any_text_makes_a_lawful_app_name() {
        for (text, name) in [("etcd", "etcd"), ("My_App:1", "my-app-1"), ("__", "app"), ("é", "app")] {
            assert_eq!(AppName::from_lossy(text).as_str(), name);
        }
        assert!(check(AppName::from_lossy(&"x-".repeat(40)).as_str()).is_ok());
    }
}
