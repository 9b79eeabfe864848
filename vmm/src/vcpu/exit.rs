//! How a guest ended, and what it was doing then.

use std::fmt;

use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::legacy::console::ConsoleLog;

/// Why the machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// The guest reset the machine: how a guest without ACPI says that it is done.
    Reset,
    /// The guest's kernel panicked.
    Panic {
        /// What it said.
        message: String,
    },
    /// The guest's CPU shut down because it could not even handle its own fault.
    TripleFault(Situation),
    /// KVM could not go on with the guest.
    InternalError {
        /// KVM's reason (`KVM_INTERNAL_ERROR_*`).
        suberror: u32,
        /// The instruction that could not be emulated, if KVM says.
        instruction: Vec<u8>,
        /// What the guest was doing.
        situation: Situation,
    },
    /// The processor refused to enter the guest.
    EntryFailed {
        /// The hardware's reason code.
        reason: u64,
        /// What the guest was about to do.
        situation: Situation,
    },
    /// KVM returned with something that this machine never asks for.
    Unexpected {
        /// The exit's name.
        exit: String,
        /// What the guest was doing.
        situation: Situation,
    },
    /// KVM_RUN itself failed.
    RunFailed {
        /// The system call's error.
        error: String,
        /// What the guest was doing.
        situation: Situation,
    },
    /// A thread of the machine ended by itself: a bug of the host's side.
    ThreadFailed {
        /// The thread's name.
        thread: String,
        /// Why.
        reason: String,
    },
    /// The machine was told to stop.
    Stopped,
}

/// What a CPU was doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Situation {
    /// Number of the CPU.
    pub vcpu: u8,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Page table root.
    pub cr3: u64,
    /// `16-bit`, `32-bit`, `64-bit kernel` and so on.
    pub mode: String,
    /// The last line on the guest's console.
    pub last_line: Option<String>,
}

impl Situation {
    /// Asks KVM where the CPU is. What KVM does not tell stays zero: this only describes a failure.
    pub fn of(vcpu: u8, fd: &VcpuFd) -> Self {
        let regs = fd.get_regs().unwrap_or_default();
        let sregs = fd.get_sregs().unwrap_or_default();
        let bits = match (sregs.cr0 & 1 != 0, sregs.cs.l, sregs.cs.db) {
            (false, _, _) => "16-bit real",
            (true, 1, _) => "64-bit",
            (true, _, 1) => "32-bit",
            (true, _, _) => "16-bit protected",
        };
        let ring = if sregs.cs.selector & 3 == 3 { "user" } else { "kernel" };
        Self {
            vcpu,
            rip: regs.rip,
            rsp: regs.rsp,
            cr3: sregs.cr3,
            mode: format!("{bits} {ring} mode"),
            last_line: None,
        }
    }
}

/// Where a CPU stands after a reset.
const RESET_RIP: u64 = 0xfff0;

impl fmt::Display for Situation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpu, rip, rsp, cr3, mode, last_line } = self;
        if *rip == RESET_RIP && *cr3 == 0 {
            // On AMD processors KVM resets the CPU before it reports a triple fault.
            write!(f, "CPU {vcpu} has been reset since, so that where it was is not known")?;
        } else {
            write!(f, "CPU {vcpu} was in {mode} at rip {rip:#x}, rsp {rsp:#x}, cr3 {cr3:#x}")?;
        }
        match last_line {
            Some(line) => write!(f, "; last console line: {line}"),
            None => write!(f, "; it had written nothing to its console"),
        }
    }
}

/// The names of KVM's internal errors (linux/kvm.h).
fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "an instruction it cannot emulate",
        2 => "simultaneous exceptions",
        3 => "an exit while delivering an event",
        4 => "an exit it does not know",
        _ => "an error it does not explain",
    }
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => write!(f, "the guest reset its machine"),
            Self::Panic { message } => write!(f, "the guest's kernel panicked: {message}"),
            Self::TripleFault(situation) => write!(f, "the guest's CPU triple-faulted: {situation}"),
            Self::InternalError { suberror, instruction, situation } => {
                write!(f, "KVM gave up on {} (suberror {suberror})", suberror_name(*suberror))?;
                if !instruction.is_empty() {
                    write!(f, ", bytes")?;
                    instruction.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
                }
                write!(f, ": {situation}")
            }
            Self::EntryFailed { reason, situation } => {
                write!(f, "the processor refused to enter the guest (hardware reason {reason:#x}): {situation}")
            }
            Self::Unexpected { exit, situation } => {
                write!(f, "KVM returned an exit this machine does not use ({exit}): {situation}")
            }
            Self::RunFailed { error, situation } => write!(f, "KVM_RUN failed ({error}): {situation}"),
            Self::ThreadFailed { thread, reason } => {
                write!(f, "the machine's thread {thread} ended by itself: {reason}")
            }
            Self::Stopped => write!(f, "the machine was stopped"),
        }
    }
}

impl VmExit {
    /// Completes the exit with what the console tells: a panic report, or the last line.
    pub fn with_console(mut self, console: &ConsoleLog) -> Self {
        // After a panic the kernel resets the machine; with a broken kernel even that may triple-fault.
        if matches!(self, Self::Reset | Self::TripleFault(_))
            && let Some(message) = console.panic_message()
        {
            return Self::Panic { message };
        }
        match &mut self {
            Self::TripleFault(situation)
            | Self::InternalError { situation, .. }
            | Self::EntryFailed { situation, .. }
            | Self::Unexpected { situation, .. }
            | Self::RunFailed { situation, .. } => situation.last_line = console.last_line(),
            Self::Reset | Self::Panic { .. } | Self::ThreadFailed { .. } | Self::Stopped => {}
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::console::ConsoleWriter;
    use std::io::Write;

    fn console(text: &str) -> ConsoleLog {
        let log = ConsoleLog::new();
        ConsoleWriter::new(log.clone(), None).write_all(text.as_bytes()).unwrap();
        log
    }

    #[test]
    fn a_reset_after_a_panic_report_is_a_panic() {
        let console = console("Kernel panic - not syncing: Attempted to kill init!\n");
        let exit = VmExit::Reset.with_console(&console);
        assert_eq!(exit.to_string(), "the guest's kernel panicked: Attempted to kill init!");
    }

    #[test]
    fn a_reset_without_a_report_stays_a_reset() {
        assert_eq!(VmExit::Reset.with_console(&console("bye\n")), VmExit::Reset);
    }

    #[test]
    fn an_internal_error_names_instruction_and_last_line() {
        let situation = Situation { rip: 0x1000, mode: "64-bit kernel mode".into(), ..Default::default() };
        let instruction = vec![0xf0, 0x48, 0x0f, 0xc7, 0x0e];
        let exit = VmExit::InternalError { suberror: 1, instruction, situation };
        let message = exit.with_console(&console("booting\n")).to_string();
        assert!(message.contains("an instruction it cannot emulate (suberror 1), bytes f0 48 0f c7 0e"));
        assert!(message.contains("rip 0x1000") && message.ends_with("last console line: booting"));
    }
}
