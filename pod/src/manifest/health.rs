//! How an app is found well, and what is done when it ends.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A command that tells by its exit code whether an app is well: 0 when it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The command and its arguments; never empty. It runs in the app, as the app's user.
    pub exec: Vec<String>,
    /// From the end of one check to the next, in milliseconds.
    pub interval_ms: u64,
    /// Longest time of a check, in milliseconds; one that takes longer has failed.
    pub timeout_ms: u64,
    /// How long after the app's start failures do not count, in milliseconds.
    pub start_period_ms: u64,
    /// How many failures in a row make an app unhealthy; at least 1.
    pub retries: u32,
}

impl HealthCheck {
    /// Time between checks, and longest time of one, unless something else is said: docker's.
    pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
    /// Failures in a row that count, unless something else is said: docker's.
    pub const DEFAULT_RETRIES: u32 = 3;
}

/// What is done when an app ends by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "restart")]
pub enum RestartPolicy {
    /// It stays ended.
    #[default]
    No,
    /// It is started again when it failed.
    OnFailure {
        /// At most that often; without end when none.
        most: Option<u32>,
    },
    /// It is started again.
    Always,
}

/// Not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no restart policy: write no, always, on-failure, or on-failure:N for at most N times")]
pub struct RestartError(pub String);

impl FromStr for RestartPolicy {
    type Err = RestartError;

    fn from_str(text: &str) -> Result<Self, RestartError> {
        match text.split_once(':') {
            None if text == "no" => Ok(Self::No),
            None if text == "always" => Ok(Self::Always),
            None if text == "on-failure" => Ok(Self::OnFailure { most: None }),
            Some(("on-failure", most)) => {
                most.parse().map(|most| Self::OnFailure { most: Some(most) }).map_err(|_| RestartError(text.into()))
            }
            _ => Err(RestartError(text.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read() {
        assert_eq!("no".parse(), Ok(RestartPolicy::No));
        assert_eq!("always".parse(), Ok(RestartPolicy::Always));
        assert_eq!("on-failure".parse(), Ok(RestartPolicy::OnFailure { most: None }));
        assert_eq!("on-failure:3".parse(), Ok(RestartPolicy::OnFailure { most: Some(3) }));
        for wrong in ["", "always:3", "on-failure:", "on-failure:x", "unless-stopped"] {
            assert!(wrong.parse::<RestartPolicy>().is_err(), "{wrong:?}");
        }
    }
}
