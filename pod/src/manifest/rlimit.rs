//! Resource limits of an app's processes (setrlimit(2)).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The resources that can be limited, without `RLIMIT_`, in lower case.
pub const RESOURCES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A soft and a hard limit of one resource, in the resource's own unit: bytes, seconds or a count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// One of [`RESOURCES`].
    pub name: String,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is none.
    pub hard: u64,
}

/// Not a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RlimitError {
    /// It has another form.
    #[error("{0:?} is no resource limit: write NAME=SOFT[:HARD], such as nofile=1024:4096 or core=unlimited")]
    Form(String),
    /// No such resource.
    #[error("there is no resource {0:?} to limit; use one of {known}", known = RESOURCES.join(", "))]
    Unknown(String),
    /// The soft limit is the higher one.
    #[error("{0:?}: the soft limit is above the hard one; write the lower number first")]
    SoftAboveHard(String),
}

/// `NAME=SOFT[:HARD]`, a limit being a number or `unlimited`; without a hard limit both are the same.
impl FromStr for Rlimit {
    type Err = RlimitError;

    fn from_str(text: &str) -> Result<Self, RlimitError> {
        let form = || RlimitError::Form(text.into());
        let limit = |text: &str| match text {
            "unlimited" | "infinity" | "-1" => Ok(u64::MAX),
            number => number.parse().map_err(|_| form()),
        };
        let (name, limits) = text.split_once('=').ok_or_else(form)?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (limit(soft)?, limit(hard)?);
        let lower = name.to_ascii_lowercase();
        let name = lower.strip_prefix("rlimit_").unwrap_or(&lower);
        if !RESOURCES.contains(&name) {
            return Err(RlimitError::Unknown(name.into()));
        }
        if soft > hard {
            return Err(RlimitError::SoftAboveHard(text.into()));
        }
        Ok(Self { name: name.into(), soft, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_in_every_spelling() {
        let limit = |name: &str, soft, hard| Ok(Rlimit { name: name.into(), soft, hard });
        assert_eq!("nofile=1024".parse(), limit("nofile", 1024, 1024));
        assert_eq!("RLIMIT_NOFILE=1024:4096".parse(), limit("nofile", 1024, 4096));
        assert_eq!("core=0:unlimited".parse(), limit("core", 0, u64::MAX));
    }

    #[test]
    fn what_is_no_limit_is_refused_with_its_cure() {
        for (text, part) in [
            ("nofile", "NAME=SOFT[:HARD]"),
            ("nofile=x", "NAME=SOFT[:HARD]"),
            ("files=1", "nofile"),
            ("nofile=2:1", "above the hard one"),
        ] {
            let message = text.parse::<Rlimit>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
