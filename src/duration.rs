//! Lengths of time as users write them.

use std::str::FromStr;
use std::time::Duration;

/// A length of time such as `30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(pub Duration);

/// Not a length of time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no length of time: write a whole number with a unit ms, s, m, h or d, such as 10s or 30m")]
pub struct NoDuration(String);

impl FromStr for Wait {
    type Err = NoDuration;

    fn from_str(text: &str) -> Result<Self, NoDuration> {
        let error = || NoDuration(text.into());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| error())?;
        let milliseconds = match &text[digits..] {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(error()),
        };
        number.checked_mul(milliseconds).map(|length| Self(Duration::from_millis(length))).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_with_their_units() {
        for (text, seconds) in [("0s", 0), ("10", 10), ("30m", 1_800), ("24h", 86_400), ("1d", 86_400)] {
            assert_eq!(text.parse(), Ok(Wait(Duration::from_secs(seconds))));
        }
        assert_eq!("500ms".parse(), Ok(Wait(Duration::from_millis(500))));
        for text in ["", "m", "-1s", "1.5h", "1w", "99999999999999999999s", "9999999999999999999d"] {
            assert!(text.parse::<Wait>().is_err(), "{text:?} was taken");
        }
    }
}
