//! The signals a pod's process acts on, read one by one instead of interrupting it.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that ask a process to end, and the one that tells of a terminal's new size.
const WANTED: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGWINCH];
/// Signals that mean something to the program alone, such as to open its log files anew, and would kill this process.
const PASSED_ON: [Signal; 8] = [
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
];

/// A source of signals' numbers.
pub struct Signals(Box<dyn FnMut() -> Option<i32> + Send>);

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signals")
    }
}

impl Signals {
    /// Blocks SIGTERM, SIGINT, SIGHUP, SIGWINCH and those that are [passed on](is_passed_on) in the calling thread and in all
    /// threads it makes from now on, and reads them from a signalfd(2). Must be called while the process has one thread, or
    /// another could be killed by them. A signal that this process was started to ignore, as nohup(1) does, stays ignored.
    ///
    /// # Errors
    /// Those of sigaction(2), sigprocmask(2) and signalfd(2).
    pub fn block() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in WANTED.into_iter().chain(PASSED_ON) {
            if !is_ignored(signal)? {
                mask.add(signal);
            }
        }
        mask.thread_block()?;
        let source = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?;
        Ok(Self(Box::new(move || match source.read_signal() {
            Ok(Some(info)) => i32::try_from(info.ssi_signo).ok(),
            Ok(None) | Err(_) => None,
        })))
    }

    /// Signals from elsewhere; no more come after the first `None`.
    pub fn from_source(source: impl FnMut() -> Option<i32> + Send + 'static) -> Self {
        Self(Box::new(source))
    }

    /// Waits for the next signal; `None` when there will be no more.
    pub fn wait(&mut self) -> Option<i32> {
        (self.0)()
    }
}

/// Whether a signal is for the program that runs inside, and asks nothing of this process.
pub fn is_passed_on(signal: i32) -> bool {
    PASSED_ON.iter().any(|passed| *passed as i32 == signal)
}

fn is_ignored(signal: Signal) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<nix::libc::sigaction>::zeroed();
    // SAFETY: sigaction(2) without a new action only writes the present one to `action`, which is large enough.
    let result = unsafe { nix::libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) };
    nix::errno::Errno::result(result)?;
    // SAFETY: the call succeeded, so the kernel and libc filled `action`; all-zero bytes were valid before, too.
    let action = unsafe { action.assume_init() };
    Ok(action.sa_sigaction == nix::libc::SIG_IGN)
}
