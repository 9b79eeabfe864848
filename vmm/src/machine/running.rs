//! A machine whose threads run.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

use super::bus::Bus;
use super::state::{self, VmState};
use super::{BuildError, Vm};
use crate::devices::worker::Command;
use crate::legacy::console::ConsoleLog;
use crate::memory::SharedMemory;
use crate::persist::PersistError;
use crate::sandbox::{self, profiles};
use crate::vcpu::exit::VmExit;
use crate::vcpu::{ExitCounts, VcpuCommand, VcpuHandle};

/// How long threads may take to finish what they are doing when the machine ends; one that hangs on the host's
/// storage is left behind, and ends with the process.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Where threads report why they ended. The first report is the machine's exit.
#[derive(Clone)]
struct ExitReport {
    sender: Sender<VmExit>,
    event: Arc<EventFd>,
}

impl ExitReport {
    fn send(&self, exit: VmExit) {
        // Nobody listens any more once the machine has ended.
        if self.sender.send(exit).is_ok() {
            let _ = self.event.write(1);
        }
    }
}

/// A running machine. Dropping it stops the guest.
pub struct RunningVm {
    shared: Arc<Shared>,
    exits: Receiver<VmExit>,
    device_threads: Vec<JoinHandle<()>>,
}

/// What handles share with the machine.
struct Shared {
    vcpus: Mutex<Vec<VcpuHandle>>,
    bus: Arc<Bus>,
    counts: Arc<ExitCounts>,
    console: ConsoleLog,
    report: ExitReport,
    // Declared before the memory, so that KVM lets go of it first.
    fd: VmFd,
    _memory: SharedMemory,
}

impl fmt::Debug for RunningVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningVm").finish_non_exhaustive()
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Its arrival alone makes KVM_RUN return.
}

impl Vm {
    /// Starts all threads; the guest runs. The process's handler of the first real-time signal is replaced.
    ///
    /// # Errors
    /// [`BuildError::Sandbox`] if a thread cannot be started, [`BuildError::Event`].
    pub fn start(self) -> Result<RunningVm, BuildError> {
        let kick_error = |error: vmm_sys_util::errno::Error| BuildError::Refused {
            what: "a signal handler",
            source: io::Error::from_raw_os_error(error.errno()),
        };
        register_signal_handler(VcpuHandle::kick_signal(), on_kick).map_err(kick_error)?;
        let (sender, exits) = mpsc::channel();
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(BuildError::Event)?;
        let report = ExitReport { sender, event: Arc::new(event) };
        let shared = Arc::new(Shared {
            vcpus: Mutex::default(),
            bus: self.bus,
            counts: self.counts,
            console: self.console,
            report: report.clone(),
            fd: self.fd,
            _memory: self.memory,
        });
        // From here on an early return drops `running`, which stops what has been started.
        let mut running = RunningVm { shared, exits, device_threads: Vec::new() };
        for (name, kind, body) in self.devices {
            let (report, thread) = (report.clone(), name.clone());
            let ended = move |result: Result<Result<(), _>, String>| {
                if let Some(reason) =
                    result.map_or_else(Some, |body| body.err().map(|e: crate::devices::DeviceError| e.to_string()))
                {
                    report.send(VmExit::ThreadFailed { thread, reason });
                }
            };
            let thread = sandbox::spawn(&name, profiles::device(kind), self.sandbox, body, ended)?;
            running.device_threads.push(thread);
        }
        for (id, (vcpu, mut handle)) in self.vcpus.into_iter().enumerate() {
            let name = format!("vcpu{id}");
            let (report, thread) = (report.clone(), name.clone());
            let ended = move |result: Result<VmExit, String>| match result {
                Ok(exit) => report.send(exit),
                Err(reason) => report.send(VmExit::ThreadFailed { thread, reason }),
            };
            let body = move || vcpu.run();
            handle.set_thread(sandbox::spawn(&name, &profiles::VCPU, self.sandbox, body, ended)?);
            running.shared.vcpus().push(handle);
        }
        Ok(running)
    }
}

impl Shared {
    fn vcpus(&self) -> std::sync::MutexGuard<'_, Vec<VcpuHandle>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause(&self) {
        for vcpu in self.vcpus().iter() {
            let _ = vcpu.ask(VcpuCommand::Pause);
        }
        for transport in self.bus.transports() {
            let _ = transport.link().ask(Command::Pause);
        }
    }

    fn resume(&self) {
        for transport in self.bus.transports() {
            transport.link().send(Command::Resume);
        }
        for vcpu in self.vcpus().iter() {
            vcpu.send(VcpuCommand::Resume);
        }
    }
}

impl RunningVm {
    /// Waits until the guest or a thread of the machine ends, and stops everything.
    pub fn wait(mut self) -> VmExit {
        // The machine itself keeps a sender, so that receiving cannot fail before there is an exit.
        let exit = self.exits.recv().unwrap_or(VmExit::Stopped);
        self.stop_threads();
        exit.with_console(&self.shared.console)
    }

    /// A descriptor that becomes readable when [`wait`](Self::wait) would return, for the caller's event loop.
    pub fn exit_event(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to an EventFd that lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.shared.report.event.as_raw_fd()) }
    }

    /// A handle to control the machine from elsewhere.
    pub fn handle(&self) -> VmHandle {
        VmHandle { shared: Arc::clone(&self.shared) }
    }

    fn stop_threads(&mut self) {
        for vcpu in self.shared.vcpus().iter_mut() {
            vcpu.stop(STOP_LIMIT);
        }
        for transport in self.shared.bus.transports() {
            transport.link().send(Command::Stop);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        for thread in self.device_threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_micros(200));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

impl AsFd for RunningVm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exit_event()
    }
}

/// Controls a running machine; may outlive it, and then does nothing.
#[derive(Clone)]
pub struct VmHandle {
    shared: Arc<Shared>,
}

impl fmt::Debug for VmHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmHandle").finish_non_exhaustive()
    }
}

/// What has happened in a machine so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmStats {
    /// Exits for port accesses.
    pub io_exits: u64,
    /// Exits for memory-mapped accesses.
    pub mmio_exits: u64,
    /// Other exits to this process.
    pub other_exits: u64,
    /// Devices that stopped on an error since their last start, with the reason.
    pub failed_devices: Vec<String>,
}

impl VmHandle {
    /// Ends the machine; its [`RunningVm::wait`] returns [`VmExit::Stopped`].
    pub fn stop(&self) {
        self.shared.report.send(VmExit::Stopped);
    }

    /// Makes all CPUs and devices stand still; returns when they do.
    pub fn pause(&self) {
        self.shared.pause();
    }

    /// Lets the machine go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.shared.resume();
    }

    /// Saves the state of the paused machine, all but its memory.
    ///
    /// # Errors
    /// [`PersistError`] if KVM or a device does not give its state.
    pub fn save(&self) -> Result<VmState, PersistError> {
        state::save(&self.shared.fd, &self.shared.vcpus(), &self.shared.bus)
    }

    /// Counters, and devices that have failed.
    pub fn stats(&self) -> VmStats {
        let counts = &self.shared.counts;
        let failed = |transport: std::sync::MutexGuard<'_, crate::virtio::mmio::MmioTransport>| {
            let health = &transport.link().health;
            health.needs_reset().then(|| health.reason().unwrap_or_default())
        };
        VmStats {
            io_exits: counts.io.load(Ordering::Relaxed),
            mmio_exits: counts.mmio.load(Ordering::Relaxed),
            other_exits: counts.other.load(Ordering::Relaxed),
            failed_devices: self.shared.bus.transports().filter_map(failed).collect(),
        }
    }

    /// The last of the guest's console output.
    pub fn console(&self) -> ConsoleLog {
        self.shared.console.clone()
    }
}
