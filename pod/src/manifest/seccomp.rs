//! Which system calls an app may make (seccomp(2)), in rkt's words: a mode, an errno, and system calls by name.

use std::str::FromStr;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Highest number that is an errno (linux/err.h).
const MAX_ERRNO: u16 = 4095;
/// Number below which all errnos that have a name are.
const NAMED_ERRNOS: i32 = 134;

/// Which system calls an app may make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "mode")]
pub enum Seccomp {
    /// podvm's allow-list: what ordinary software needs, without what serves to attack a kernel.
    #[default]
    Default,
    /// All of them.
    Unconfined,
    /// Only these; any other ends as `otherwise` says.
    Retain {
        /// Names of system calls.
        syscalls: Vec<String>,
        /// What happens to all others.
        otherwise: SeccompAction,
    },
    /// All but these, which end as `then` says.
    Remove {
        /// Names of system calls.
        syscalls: Vec<String>,
        /// What happens to them.
        then: SeccompAction,
    },
    /// Those that both podvm's allow-list and another choice allow: what an image says of itself can take away only.
    Narrowed {
        /// The other choice.
        by: Box<Seccomp>,
    },
}

/// What happens to a system call that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompAction {
    /// It fails with this errno.
    Errno(u16),
    /// The process is killed.
    Kill,
}

/// Not a choice of system calls.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// The mode is missing or unknown.
    #[error(
        "{0:?}: write mode=default, mode=unconfined, or mode=retain or mode=remove with [,errno=NAME] and system calls"
    )]
    Mode(String),
    /// A list without a name in it.
    #[error("{0:?} names no system call; write some after the mode, such as mode=remove,errno=EPERM,mkdir,rmdir")]
    NoCalls(String),
    /// Words after a mode that takes none.
    #[error("{0:?}: nothing may follow this mode; system calls go with mode=retain or mode=remove")]
    Words(String),
    /// Not an errno.
    #[error("{0:?} is no errno; write a name such as EPERM or ENOSYS, see errno(3)")]
    Errno(String),
    /// Not a system call's name.
    #[error("{0:?} is no name of a system call; see syscalls(2)")]
    Call(String),
}

/// `mode=default`, `mode=unconfined`, `mode=retain[,errno=NAME],CALL,…` or `mode=remove[,errno=NAME],CALL,…`. Without an errno the
/// process is killed.
impl FromStr for Seccomp {
    type Err = SeccompError;

    fn from_str(text: &str) -> Result<Self, SeccompError> {
        let mut words = text.split(',');
        let mode = words.next().unwrap_or_default();
        let mode = mode.strip_prefix("mode=").ok_or_else(|| SeccompError::Mode(text.into()))?;
        let (mut syscalls, mut action) = (Vec::new(), SeccompAction::Kill);
        for word in words.clone() {
            match word.split_once('=') {
                Some(("errno", name)) => action = SeccompAction::Errno(errno(name)?),
                None if is_name(word) => syscalls.push(word.to_owned()),
                _ => return Err(SeccompError::Call(word.into())),
            }
        }
        let has_words = words.next().is_some();
        match mode {
            "default" | "unconfined" if has_words => Err(SeccompError::Words(text.into())),
            "default" => Ok(Self::Default),
            "unconfined" => Ok(Self::Unconfined),
            "retain" | "remove" if syscalls.is_empty() => Err(SeccompError::NoCalls(text.into())),
            "retain" => Ok(Self::Retain { syscalls, otherwise: action }),
            "remove" => Ok(Self::Remove { syscalls, then: action }),
            _ => Err(SeccompError::Mode(text.into())),
        }
    }
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn errno(name: &str) -> Result<u16, SeccompError> {
    let by_name = || {
        let named = (1..NAMED_ERRNOS).find(|number| {
            let errno = Errno::from_raw(*number);
            errno != Errno::UnknownErrno && format!("{errno:?}") == name
        });
        named.or((name == "ENOTSUP").then_some(Errno::EOPNOTSUPP as i32))
    };
    let number = name.parse().ok().or_else(|| by_name().and_then(|number| u16::try_from(number).ok()));
    number.filter(|number| (1..=MAX_ERRNO).contains(number)).ok_or_else(|| SeccompError::Errno(name.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn modes_lists_and_errnos_are_read() {
        assert_eq!("mode=default".parse(), Ok(Seccomp::Default));
        assert_eq!("mode=unconfined".parse(), Ok(Seccomp::Unconfined));
        let syscalls = vec!["mkdir".to_owned(), "rmdir".to_owned()];
        assert_eq!(
            "mode=remove,errno=ENOSYS,mkdir,rmdir".parse(),
            Ok(Seccomp::Remove { syscalls: syscalls.clone(), then: SeccompAction::Errno(38) })
        );
        assert_eq!("mode=retain,mkdir,rmdir".parse(), Ok(Seccomp::Retain { syscalls, otherwise: SeccompAction::Kill }));
    }

    #[test]
    fn what_is_no_choice_is_refused_with_its_cure() {
        for (text, part) in [
            ("retain,mkdir", "mode=default"),
            ("mode=some", "mode=default"),
            ("mode=retain", "names no system call"),
            ("mode=default,mkdir", "nothing may follow"),
            ("mode=remove,errno=EFLY,mkdir", "EFLY"),
            ("mode=remove,MKDIR", "MKDIR"),
        ] {
            let message = text.parse::<Seccomp>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(mode=)?[a-z]{0,8}(,(errno=)?[A-Z0-9a-z=]{0,8}){0,4}") {
            let _ = text.parse::<Seccomp>();
        }
    }
}
