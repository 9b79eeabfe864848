//! The one door for every thread: it names the thread, takes away what its kind does not need (capabilities,
//! system calls), and reports if it panics.
//!
//! What a kind of thread may do is a [`Profile`], a constant in [`profiles`]. A system call that is not on
//! the profile's list ends the whole process: the SIGSYS handler prints the call's number and the thread's
//! name first. `no_new_privs` is set, and cannot be unset.

mod filter;
pub mod profiles;

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::thread::{self, JoinHandle};

use caps::{CapSet, Capability, CapsHashSet};
use seccompiler::BpfProgram;
use vmm_sys_util::signal::register_signal_handler;

/// Stack of a thread. With the usual 2 MiB the host would back it by a huge page, zeroed before the thread can start.
const STACK_BYTES: usize = 512 << 10;

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub enum Allow {
    /// Whatever its arguments.
    Call(libc::c_long),
    /// Only if the argument has one of these values (compared in 32 bits, as ioctl requests and flags are).
    CallWith(libc::c_long, u8, &'static [u32]),
    /// Only if the argument has none of these bits.
    CallWithout(libc::c_long, u8, u32),
}

/// What a kind of thread may do.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Name of the kind, for messages.
    pub name: &'static str,
    /// System calls beyond [`profiles::COMMON`].
    pub system_calls: &'static [Allow],
    /// Capabilities it keeps, if the process has them.
    pub capabilities: &'static [Capability],
}

/// Why a thread could not be started or confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The thread could not be made.
    #[error("thread {name} cannot be started")]
    Spawn {
        /// The thread's name.
        name: String,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// Privileges could not be given up.
    #[error("thread kind {profile}: {what} failed")]
    Confine {
        /// The profile's name.
        profile: &'static str,
        /// What failed.
        what: &'static str,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

/// Whether threads are confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Every thread gets its profile.
    #[default]
    On,
    /// For debuggers and system call tracing only.
    Off,
}

/// A profile made ready to be applied.
#[derive(Clone, Debug)]
pub struct Confinement {
    profile: &'static Profile,
    filter: BpfProgram,
}

impl Confinement {
    /// Compiles a profile's filter.
    pub fn of(profile: &'static Profile) -> Self {
        Self { profile, filter: filter::compile(profiles::COMMON.iter().chain(profile.system_calls)) }
    }

    /// Confines the calling thread, for good. New threads inherit it.
    ///
    /// # Errors
    /// [`SandboxError::Confine`] if the kernel refuses.
    pub fn apply(&self) -> Result<(), SandboxError> {
        let failed = |what| move |source| SandboxError::Confine { profile: self.profile.name, what, source };
        report_violations();
        keep_allocator_quiet();
        drop_capabilities(self.profile.capabilities).map_err(failed("dropping capabilities"))?;
        // SAFETY: this prctl takes plain numbers and only restricts the calling thread.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(failed("setting no_new_privs")(io::Error::last_os_error()));
        }
        seccompiler::apply_filter(&self.filter)
            .map_err(|error| failed("installing the system call filter")(io::Error::other(error.to_string())))
    }
}

/// Starts a thread. `ended` is called on it with the body's result, or with the panic's message. In a program built with
/// `panic = "abort"` a panic prints its message and ends the process instead.
///
/// # Errors
/// [`SandboxError`]. An error of confinement, on the thread itself, is reported to `ended` as a panic is.
pub fn spawn<T: 'static>(
    name: &str,
    profile: &'static Profile,
    sandbox: Sandbox,
    body: impl FnOnce() -> T + Send + 'static,
    ended: impl FnOnce(Result<T, String>) + Send + 'static,
) -> Result<JoinHandle<()>, SandboxError> {
    let confinement = match sandbox {
        Sandbox::On => Some(Confinement::of(profile)),
        Sandbox::Off => None,
    };
    report_panics_briefly();
    let main = move || {
        CONFINED.set(confinement.is_some());
        if let Some(Err(error)) = confinement.map(|confinement| confinement.apply()) {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            return ended(Err(format!("{error}: {source}")));
        }
        ended(catch_unwind(AssertUnwindSafe(body)).map_err(|panic| panic_message(&*panic)));
    };
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(main)
        .map_err(|source| SandboxError::Spawn { name: name.to_owned(), source })
}

thread_local! {
    /// Whether this thread may no longer read files, as a backtrace needs.
    static CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// Makes panics of confined threads print one line: a backtrace would be a forbidden system call.
fn report_panics_briefly() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| if CONFINED.get() { eprintln!("podvm: {info}") } else { usual(info) }));
    });
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}

/// Stops glibc's allocator from giving the end of a thread's heap back: before it does so for the first time it reads
/// a file in /proc, which no confined thread may. Large blocks are mappings of their own and still given back.
fn keep_allocator_quiet() {
    #[cfg(target_env = "gnu")]
    {
        static DONE: Once = Once::new();
        // SAFETY: mallopt takes plain numbers and locks the allocator itself.
        DONE.call_once(|| unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        });
    }
}

fn drop_capabilities(keep: &[Capability]) -> io::Result<()> {
    let to_io = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    let permitted = caps::read(None, CapSet::Permitted).map_err(to_io)?;
    let kept: CapsHashSet = keep.iter().copied().filter(|cap| permitted.contains(cap)).collect();
    caps::clear(None, CapSet::Inheritable).map_err(to_io)?;
    caps::set(None, CapSet::Effective, &kept).map_err(to_io)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(to_io)
}

/// Exit status after a forbidden system call: 128 + SIGSYS, as a shell would report it.
const VIOLATION_STATUS: libc::c_int = 128 + libc::SIGSYS;

/// Installs the handler that names a forbidden system call before the process ends.
fn report_violations() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Without the handler the kernel ends the process by SIGSYS, only without the name.
        let _ = register_signal_handler(libc::SIGSYS, on_violation);
    });
}

extern "C" fn on_violation(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    /// Offset of `si_syscall` in siginfo_t on 64-bit Linux: behind three ints, padding and `si_call_addr`.
    const SI_SYSCALL: usize = 24;
    // SAFETY: the kernel passes a siginfo_t of 128 bytes, in which this is an int for SIGSYS.
    let number = unsafe { info.cast::<u8>().add(SI_SYSCALL).cast::<libc::c_int>().read_unaligned() };
    let mut name = [0_u8; 16];
    // SAFETY: the buffer has the 16 bytes that PR_GET_NAME writes; the calls are async-signal-safe and take
    // pointers to live buffers. PR_GET_NAME is on the list that all profiles share.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let mut message = Message::default();
    message.push(b"podvm: thread ");
    message.push(name.split(|byte| *byte == 0).next().unwrap_or_default());
    message.push(b" made a forbidden system call, number ");
    message.push_number(number.unsigned_abs());
    message.push(b"; the process ends\n");
    // SAFETY: as above.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.bytes.as_ptr().cast(), message.length);
        libc::_exit(VIOLATION_STATUS);
    }
}

/// A message built without allocation, as a signal handler must.
struct Message {
    bytes: [u8; 160],
    length: usize,
}

impl Default for Message {
    fn default() -> Self {
        Self { bytes: [0; 160], length: 0 }
    }
}

impl Message {
    fn push(&mut self, text: &[u8]) {
        for (to, from) in self.bytes[self.length..].iter_mut().zip(text) {
            *to = *from;
            self.length += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(&[b'0' + (number % 10) as u8]);
    }
}

#[cfg(test)]
mod tests;
