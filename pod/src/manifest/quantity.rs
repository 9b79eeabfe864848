//! Amounts as users write them: bytes and CPUs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a size.
    #[error("{0:?} is no size: write a whole number with an optional unit K, M, G or T (powers of 1024), such as 256M")]
    NotASize(String),
    /// Not a number of CPUs.
    #[error("{0:?} is no amount of CPU: write CPUs such as 2 or 0.5, or thousandths such as 500m")]
    NotCpu(String),
}

/// A number of bytes. Read from and written as text with binary units: `256M` is 256 MiB, and so are `256Mi` and `256MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// That many MiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError::NotASize(text.into());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| error())?;
        let shift = match text[digits..].to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "ki" | "kib" => 10,
            "m" | "mi" | "mib" => 20,
            "g" | "gi" | "gib" => 30,
            "t" | "ti" | "tib" => 40,
            _ => return Err(error()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift {
                let whole = self.0 >> shift;
                let tenth = ((self.0 & ((1 << shift) - 1)) * 10) >> shift;
                return if tenth == 0 { write!(f, "{whole} {unit}") } else { write!(f, "{whole}.{tenth} {unit}") };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// CPU time in thousandths of one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CpuLimit(pub u32);

impl CpuLimit {
    /// The fewest whole CPUs that can give this much.
    pub const fn whole_cpus(self) -> u32 {
        self.0.div_ceil(1000)
    }
}

impl FromStr for CpuLimit {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError::NotCpu(text.into());
        let thousandths = match text.strip_suffix('m') {
            Some(number) => number.parse::<u32>().map_err(|_| error())?,
            None => {
                let cpus: f64 = text.parse().map_err(|_| error())?;
                if !(cpus.is_finite() && (0.0..=1_000_000.0).contains(&cpus)) {
                    return Err(error());
                }
                (cpus * 1000.0).round() as u32
            }
        };
        if thousandths == 0 { Err(error()) } else { Ok(Self(thousandths)) }
    }
}

impl fmt::Display for CpuLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_however_they_are_spelled() {
        for text in ["64M", "64m", "64Mi", "64MiB", "65536K", "67108864"] {
            assert_eq!(text.parse(), Ok(ByteSize::mib(64)), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "1Q", "99999999999T"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?} was taken");
        }
        assert_eq!(ByteSize(1536 << 20).to_string(), "1.5 GiB");
    }

    #[test]
    fn cpus_are_read_whole_in_parts_and_in_thousandths() {
        for (text, thousandths) in [("1", 1000), ("0.5", 500), ("500m", 500), ("1.5", 1500)] {
            assert_eq!(text.parse(), Ok(CpuLimit(thousandths)));
        }
        for text in ["", "0", "-1", "NaN", "inf", "m", "0m"] {
            assert!(text.parse::<CpuLimit>().is_err(), "{text:?} was taken");
        }
        assert_eq!(CpuLimit(1500).whole_cpus(), 2);
    }
}
