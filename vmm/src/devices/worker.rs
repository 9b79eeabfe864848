//! The thread of a device: it owns the device and its queues, and waits for events by epoll.
//!
//! The transport (on vCPU threads) and the machine speak to it through a [`DeviceLink`]: a mailbox of
//! [`Command`]s with an eventfd as its bell. Commands that must have happened before the guest goes on
//! (reset, pause) are answered; activation is not waited for, because kicks wait in their eventfds.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{Context, DeviceError, DeviceKind, FIRST_RESERVED_TOKEN, VirtioDevice, Watches};
use crate::persist::{self, Persist, PersistError};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{QueueState, Virtqueue};

/// Token of the mailbox's bell; kicks of queue `n` have [`FIRST_RESERVED_TOKEN`] + `n`.
const BELL: u32 = u32::MAX;

/// Events taken from epoll at once.
const EVENTS_PER_ROUND: usize = 32;

/// What a device thread can be told.
#[derive(Debug)]
pub enum Command {
    /// The driver is ready.
    Activate {
        /// Features both sides agreed on.
        features: u64,
        /// The queues, all of them.
        queues: Vec<Virtqueue>,
        /// Whether the queues come from a snapshot, and may hold work that nobody will kick for again.
        restored: bool,
    },
    /// The driver reset the device; answered when the device has let go of the queues.
    Reset(Sender<()>),
    /// Stand still until [`Command::Resume`]; answered when it does.
    Pause(Sender<()>),
    /// Go on.
    Resume,
    /// Save the device; only while paused.
    Save(Sender<Result<SavedDevice, PersistError>>),
    /// End the thread.
    Stop,
}

/// A device's part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice {
    /// The device's own state, encoded by [`persist::encode`].
    pub device: Vec<u8>,
    /// Negotiated features and queues, if the device was active.
    pub active: Option<(u64, Vec<QueueState>)>,
}

/// What is known of a device from outside its thread.
#[derive(Debug, Default)]
pub struct Health {
    needs_reset: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Health {
    /// Whether the device stopped on an error and waits for a reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// Why it stopped last.
    pub fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn fail(&self, reason: String) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.needs_reset.store(true, Ordering::SeqCst);
    }

    fn clear(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
    }
}

/// The outside of a device: what its transport and the machine hold of it.
#[derive(Debug)]
pub struct DeviceLink {
    /// What the device is.
    pub kind: DeviceKind,
    /// The device's own feature bits.
    pub features: u64,
    /// Largest size of each queue.
    pub queue_sizes: Vec<u16>,
    /// The configuration space.
    pub config: Vec<u8>,
    /// One eventfd per queue, for the driver's kicks.
    pub kicks: Vec<Arc<EventFd>>,
    /// The interrupt line.
    pub interrupt: Arc<Interrupt>,
    /// How the device is.
    pub health: Arc<Health>,
    mailbox: Sender<Command>,
    bell: Arc<EventFd>,
}

impl DeviceLink {
    /// Tells the device thread something. Commands to a thread that has ended are lost, like their answers.
    pub fn send(&self, command: Command) {
        if self.mailbox.send(command).is_ok() {
            // A full counter means that the bell rings already.
            let _ = self.bell.write(1);
        }
    }

    /// Sends a command that is answered, and waits; `None` if the thread has ended.
    pub fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Option<T> {
        let (answer, answered) = mpsc::channel();
        self.send(command(answer));
        answered.recv().ok()
    }
}

/// Whether the device has been given queues.
enum Phase {
    Inactive,
    Active { features: u64, queues: Vec<Virtqueue> },
}

/// A device on its thread.
pub struct DeviceWorker<D> {
    device: D,
    phase: Phase,
    kicks: Vec<Arc<EventFd>>,
    interrupt: Arc<Interrupt>,
    health: Arc<Health>,
    mailbox: Receiver<Command>,
    bell: Arc<EventFd>,
    stopped: bool,
}

impl<D: VirtioDevice> DeviceWorker<D> {
    /// Puts a device into a worker that is not running yet, and makes the link to it.
    ///
    /// # Errors
    /// The error of eventfd(2).
    pub fn new(device: D) -> io::Result<(Self, DeviceLink)> {
        let eventfd = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let kicks = device.queue_sizes().iter().map(|_| eventfd()).collect::<io::Result<Vec<_>>>()?;
        let (sender, mailbox) = mpsc::channel();
        let (bell, interrupt, health) = (eventfd()?, Arc::new(Interrupt::new()?), Arc::default());
        let link = DeviceLink {
            kind: device.kind(),
            features: device.features(),
            queue_sizes: device.queue_sizes().to_vec(),
            config: device.config(),
            kicks: kicks.clone(),
            interrupt: Arc::clone(&interrupt),
            health: Arc::clone(&health),
            mailbox: sender,
            bell: Arc::clone(&bell),
        };
        let phase = Phase::Inactive;
        let worker = Self { device, phase, kicks, interrupt, health, mailbox, bell, stopped: false };
        Ok((worker, link))
    }

    /// Serves the device until [`Command::Stop`]. The body of the device's thread.
    ///
    /// # Errors
    /// [`DeviceError::Watch`] if epoll itself fails.
    pub fn run(self) -> Result<(), DeviceError> {
        let mut manager = EventManager::new_with_capacity(EVENTS_PER_ROUND).map_err(DeviceError::Watch)?;
        let id = manager.add_subscriber(self);
        while !manager.subscriber_mut(id).map_err(DeviceError::Watch)?.stopped {
            manager.run().map_err(DeviceError::Watch)?;
        }
        Ok(())
    }

    /// The device, for tests that look inside.
    #[cfg(test)]
    pub(crate) fn device(&mut self) -> &mut D {
        &mut self.device
    }

    fn obey_all(&mut self, ops: &mut EventOps<'_>) {
        while let Ok(command) = self.mailbox.try_recv() {
            self.obey(command, ops);
        }
    }

    fn obey(&mut self, command: Command, ops: &mut EventOps<'_>) {
        match command {
            Command::Activate { features, queues, restored } => {
                self.activate(features, queues, restored, ops);
            }
            Command::Reset(done) => {
                self.reset(ops);
                self.health.clear();
                // The asker may be gone when the whole machine stops.
                let _ = done.send(());
            }
            Command::Pause(done) => {
                let _ = done.send(());
                self.stand_still(ops);
            }
            Command::Save(reply) => {
                let _ = reply.send(self.save());
            }
            Command::Resume => {}
            Command::Stop => {
                self.serve_queues(ops);
                self.reset(ops);
                self.stopped = true;
            }
        }
    }

    /// Serves all queues once more: the kick for what the driver handed over last may not have been seen yet, and
    /// it may be what the guest had to say before it ended.
    fn serve_queues(&mut self, ops: &mut EventOps<'_>) {
        for index in 0..self.kicks.len() {
            self.serve_queue(index, ops);
        }
    }

    fn serve_queue(&mut self, index: usize, ops: &mut EventOps<'_>) {
        self.with_device(ops, |device, context| {
            if context.queues[index].is_ready() { device.process_queue(index, context) } else { Ok(()) }
        });
    }

    /// Obeys only the mailbox, so that no event touches the device, until told to resume or stop.
    fn stand_still(&mut self, ops: &mut EventOps<'_>) {
        while !self.stopped {
            match self.mailbox.recv() {
                Ok(Command::Resume) => return,
                Ok(command) => self.obey(command, ops),
                Err(mpsc::RecvError) => self.stopped = true,
            }
        }
    }

    fn activate(&mut self, features: u64, queues: Vec<Virtqueue>, restored: bool, ops: &mut EventOps<'_>) {
        self.reset(ops);
        self.phase = Phase::Active { features, queues };
        self.with_device(ops, |device, context| {
            device.activate(features, context)?;
            for queue in context.queues.iter().filter(|queue| restored && queue.is_ready()) {
                queue.kick_self()?;
            }
            Ok(())
        });
    }

    fn reset(&mut self, ops: &mut EventOps<'_>) {
        self.phase = Phase::Inactive;
        self.device.reset(&mut Watches::new(ops));
    }

    fn save(&self) -> Result<SavedDevice, PersistError> {
        let active = match &self.phase {
            Phase::Inactive => None,
            Phase::Active { features, queues } => Some((*features, queues.iter().map(Persist::save).collect())),
        };
        Ok(SavedDevice { device: persist::encode(&self.device.save())?, active })
    }

    /// Calls into the device if it is active, and stops it if it reports an error.
    fn with_device(
        &mut self,
        ops: &mut EventOps<'_>,
        call: impl FnOnce(&mut D, &mut Context<'_, '_>) -> Result<(), DeviceError>,
    ) {
        let Phase::Active { queues, .. } = &mut self.phase else { return };
        let mut context = Context { queues, watches: Watches::new(ops) };
        if let Err(error) = call(&mut self.device, &mut context) {
            self.reset(ops);
            self.health.fail(describe(self.device.kind(), &error));
            self.interrupt.raise_config_change();
        }
    }
}

/// An error with its causes on one line.
fn describe(kind: DeviceKind, error: &DeviceError) -> String {
    let mut text = format!("{} device: {error}", kind.name());
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

impl<D: VirtioDevice> MutEventSubscriber for DeviceWorker<D> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let bell = Events::with_data(&*self.bell, BELL, EventSet::IN);
        let kicks = self.kicks.iter().zip(FIRST_RESERVED_TOKEN..);
        let kicks = kicks.map(|(kick, token)| Events::with_data(&**kick, token, EventSet::IN));
        for events in std::iter::once(bell).chain(kicks) {
            if let Err(error) = ops.add(events) {
                // Deaf to its driver or its machine, the device cannot work at all.
                self.health.fail(describe(self.device.kind(), &DeviceError::Watch(error)));
                self.stopped = true;
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == BELL {
            let _ = self.bell.read();
            self.obey_all(ops);
        } else if let Some(index) = events.data().checked_sub(FIRST_RESERVED_TOKEN) {
            let index = index as usize;
            let _ = self.kicks[index].read();
            // The kick may have overtaken the bell of the activation that it follows.
            self.obey_all(ops);
            self.serve_queue(index, ops);
        } else {
            self.with_device(ops, |device, context| device.process_event(events.data(), events.event_set(), context));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::rng::Rng;
    use crate::devices::testing::{Bench, Buffer};

    #[test]
    fn a_malformed_ring_stops_the_device_until_its_reset() {
        let mut bench = Bench::start(Rng::new());
        bench.make_available(0, 9999);
        bench.kick(0);
        assert!(bench.link().health.needs_reset());
        assert!(bench.link().health.reason().unwrap().contains("descriptor chain 9999"));

        bench.restart();
        assert!(!bench.link().health.needs_reset());
        let head = bench.add_chain(0, &[Buffer::writable(8)]);
        bench.kick(0);
        assert_eq!(bench.used(0), [(head, 8)]);
    }

    #[test]
    fn a_paused_device_leaves_its_queue_alone_and_saves_it() {
        let (worker, link) = DeviceWorker::new(Rng::new()).unwrap();
        let thread = std::thread::spawn(move || worker.run());
        link.ask(Command::Pause).unwrap();
        let saved = link.ask(Command::Save).unwrap().unwrap();
        assert_eq!(saved.active, None);
        assert_eq!(saved.device, persist::encode(&Rng::new().save()).unwrap());
        link.send(Command::Resume);
        link.ask(Command::Reset).unwrap();
        link.send(Command::Stop);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn what_the_driver_handed_over_before_the_stop_is_still_done() {
        let mut bench = Bench::start(Rng::new());
        let head = bench.add_chain(0, &[Buffer::writable(8)]);
        bench.link().send(Command::Stop);
        bench.run();
        assert_eq!(bench.used(0), [(head, 8)]);
    }

    #[test]
    fn asking_a_stopped_device_gets_no_answer_and_does_not_hang() {
        let (worker, link) = DeviceWorker::new(Rng::new()).unwrap();
        link.send(Command::Stop);
        worker.run().unwrap();
        assert!(link.ask(Command::Reset).is_none());
    }
}
