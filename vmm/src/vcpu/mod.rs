//! A virtual CPU: set up by the machine, then run on a thread of its own until the guest or the machine ends.
//!
//! The machine speaks to the thread by [`VcpuHandle`]: a mailbox, and a signal that makes KVM_RUN return.

pub mod cpuid;
pub mod exit;
pub mod registers;
pub mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use self::exit::{Situation, VmExit};
use self::state::VcpuState;
use crate::machine::bus::{Bus, Flow};

/// How long to wait for a vCPU before it is signalled again: a signal that arrives just before KVM_RUN is lost.
const KICK_INTERVAL: Duration = Duration::from_millis(2);

/// KVM says that it knows the instruction bytes.
const FLAG_INSTRUCTION_BYTES: u64 = 1;

/// What a vCPU thread can be told.
pub enum VcpuCommand {
    /// Stand still until [`VcpuCommand::Resume`]; answered when it does.
    Pause(Sender<()>),
    /// Go on.
    Resume,
    /// Save the CPU; only while paused.
    Save(Sender<Result<VcpuState, kvm_ioctls::Error>>),
    /// End the thread.
    Stop(Sender<()>),
}

/// Counters of what made vCPUs leave the guest.
#[derive(Debug, Default)]
pub struct ExitCounts {
    /// Port accesses.
    pub io: AtomicU64,
    /// Memory-mapped accesses.
    pub mmio: AtomicU64,
    /// Signals and everything else.
    pub other: AtomicU64,
}

/// A vCPU on its thread.
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    bus: Arc<Bus>,
    counts: Arc<ExitCounts>,
    msr_indices: Arc<[u32]>,
    mailbox: Receiver<VcpuCommand>,
    has_mail: Arc<AtomicBool>,
}

/// The machine's side of a vCPU thread.
pub struct VcpuHandle {
    mailbox: Sender<VcpuCommand>,
    has_mail: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What one exit means for the loop.
enum Next {
    Run,
    LookAtMail,
    End(VmExit),
}

impl Vcpu {
    /// Joins a CPU that is set up with its surroundings, and makes the handle to its thread to be.
    pub fn new(
        id: u8,
        fd: VcpuFd,
        bus: Arc<Bus>,
        counts: Arc<ExitCounts>,
        msr_indices: Arc<[u32]>,
    ) -> (Self, VcpuHandle) {
        let (sender, mailbox) = mpsc::channel();
        let has_mail = Arc::new(AtomicBool::new(false));
        let handle = VcpuHandle { mailbox: sender, has_mail: Arc::clone(&has_mail), thread: None };
        (Self { id, fd, bus, counts, msr_indices, mailbox, has_mail }, handle)
    }

    /// Runs the guest. The body of the vCPU's thread.
    pub fn run(mut self) -> VmExit {
        loop {
            let next = if self.has_mail.swap(false, Ordering::SeqCst) { Next::LookAtMail } else { self.enter() };
            match next {
                Next::Run => {}
                Next::LookAtMail => {
                    if self.read_mail().is_break() {
                        return VmExit::Stopped;
                    }
                }
                Next::End(exit) => return exit,
            }
        }
    }

    fn read_mail(&mut self) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        let mut paused = false;
        loop {
            let command = if paused { self.mailbox.recv().ok() } else { self.mailbox.try_recv().ok() };
            match command {
                Some(VcpuCommand::Pause(done)) => {
                    self.finish_access();
                    paused = true;
                    let _ = done.send(());
                }
                Some(VcpuCommand::Resume) => {
                    // So that the guest's watchdogs do not count the pause; a guest without that clock refuses.
                    let _ = self.fd.kvmclock_ctrl();
                    paused = false;
                }
                Some(VcpuCommand::Save(reply)) => {
                    let _ = reply.send(state::save(&self.fd, &self.msr_indices));
                }
                Some(VcpuCommand::Stop(done)) => {
                    let _ = done.send(());
                    return Break(());
                }
                None if paused => return Break(()),
                None => return Continue(()),
            }
        }
    }

    /// Lets KVM complete the access that made it exit last, without running the guest further: only then
    /// are the registers whole.
    fn finish_access(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // It returns EINTR, which is what was asked for.
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Enters the guest once.
    fn enter(&mut self) -> Next {
        let counts = &self.counts;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let failed: Failure = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&counts.io);
                self.bus.io_read(port, data);
                return Next::Run;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&counts.io);
                return match self.bus.io_write(port, data) {
                    Flow::Continue => Next::Run,
                    Flow::Reset => Next::End(VmExit::Reset),
                };
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&counts.mmio);
                self.bus.mmio_read(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&counts.mmio);
                self.bus.mmio_write(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {
                count(&counts.other);
                return Next::Run;
            }
            Ok(VcpuExit::Shutdown) => Failure::TripleFault,
            // With an in-kernel interrupt controller a system event of type 1 is a shutdown, 2 a reset.
            Ok(VcpuExit::SystemEvent(1 | 2, _)) => return Next::End(VmExit::Reset),
            Ok(VcpuExit::InternalError) => Failure::Internal,
            Ok(VcpuExit::FailEntry(reason, _cpu)) => Failure::Entry(reason),
            Ok(other) => Failure::Unexpected(format!("{other:?}")),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                count(&counts.other);
                return Next::Run;
            }
            Err(error) => Failure::Run(error.to_string()),
        };
        Next::End(self.explain(failed))
    }

    fn explain(&mut self, failure: Failure) -> VmExit {
        let situation = Situation::of(self.id, &self.fd);
        match failure {
            Failure::TripleFault => VmExit::TripleFault(situation),
            Failure::Internal => {
                let (suberror, instruction) = internal_error(&mut self.fd);
                VmExit::InternalError { suberror, instruction, situation }
            }
            Failure::Entry(reason) => VmExit::EntryFailed { reason, situation },
            Failure::Unexpected(exit) => VmExit::Unexpected { exit, situation },
            Failure::Run(error) => VmExit::RunFailed { error, situation },
        }
    }
}

/// An exit that ends the guest, before its circumstances are known.
enum Failure {
    TripleFault,
    Internal,
    Entry(u64),
    Unexpected(String),
    Run(String),
}

/// After KVM_EXIT_INTERNAL_ERROR: the suberror, and the instruction's bytes if KVM gives them.
pub(crate) fn internal_error(fd: &mut VcpuFd) -> (u32, Vec<u8>) {
    // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, for which the kernel filled this member of the union;
    // its members are plain integers, valid whatever they hold.
    let failure = unsafe { fd.get_kvm_run().__bindgen_anon_1.emulation_failure };
    let has_bytes = failure.suberror == KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 3
        && failure.flags & FLAG_INSTRUCTION_BYTES != 0;
    if !has_bytes {
        return (failure.suberror, Vec::new());
    }
    // SAFETY: as above; the flag says that these members are the ones in use.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let length = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
    (failure.suberror, instruction.insn_bytes[..length].to_vec())
}

impl VcpuHandle {
    /// The signal that makes a vCPU leave KVM_RUN.
    pub fn kick_signal() -> libc::c_int {
        SIGRTMIN()
    }

    /// Takes charge of the thread that runs the vCPU.
    pub fn set_thread(&mut self, thread: JoinHandle<()>) {
        self.thread = Some(thread);
    }

    /// Sends a command that is not answered.
    pub fn send(&self, command: VcpuCommand) {
        if self.mailbox.send(command).is_ok() {
            self.has_mail.store(true, Ordering::SeqCst);
        }
    }

    /// Sends a command and kicks the vCPU until it has answered; `None` if its thread has ended.
    pub fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> VcpuCommand) -> Option<T> {
        self.ask_until(command, None)
    }

    fn ask_until<T>(&self, command: impl FnOnce(Sender<T>) -> VcpuCommand, deadline: Option<Instant>) -> Option<T> {
        let (answer, answered) = mpsc::channel();
        self.send(command(answer));
        while deadline.is_none_or(|deadline| Instant::now() < deadline) {
            if let Some(thread) = &self.thread {
                // A thread that is ending anyway answers by closing the channel.
                let _ = thread.kill(Self::kick_signal());
            }
            match answered.recv_timeout(KICK_INTERVAL) {
                Ok(value) => return Some(value),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        None
    }

    /// Ends the thread and waits for it, but no longer than `limit`: a CPU that waits for a device which hangs on the
    /// host's storage is left behind, and ends with the process.
    pub fn stop(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let _ = self.ask_until(VcpuCommand::Stop, Some(deadline));
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(KICK_INTERVAL / 10);
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}
