//! A driver's steps at the registers, in the right order and in wrong ones.

use super::*;
use crate::devices::rng::Rng;
use crate::devices::worker::DeviceWorker;
use crate::memory::map_ram;
use proptest::prelude::*;
use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vm_memory::{Bytes, GuestAddress};

struct Setup {
    transport: MmioTransport,
    memory: SharedMemory,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Setup {
    fn new() -> Self {
        let memory = map_ram(1 << 20).unwrap();
        let (worker, link) = DeviceWorker::new(Rng::new()).unwrap();
        let thread = Some(std::thread::spawn(|| worker.run().unwrap()));
        Self { transport: MmioTransport::new(link, memory.clone()), memory, thread }
    }

    fn get(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn negotiate(&mut self) {
        self.set(0x70, ACKNOWLEDGE);
        self.set(0x70, ACKNOWLEDGE | DRIVER);
        self.set(0x24, 1);
        self.set(0x20, 1);
        self.set(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn set_up_queue(&mut self) {
        self.set(0x30, 0);
        self.set(0x38, 16);
        for (register, address) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
            self.set(register, address);
            self.set(register + 4, 0);
        }
        self.set(0x44, 1);
    }

    fn start(&mut self) {
        self.negotiate();
        self.set_up_queue();
        self.set(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Puts one writable buffer of 8 bytes at 0x4000 into the ring and kicks.
    fn request(&self, count: u16) {
        self.memory.write_obj(0x4000_u64, GuestAddress(0x1000)).unwrap();
        self.memory.write_obj(8_u32, GuestAddress(0x1008)).unwrap();
        self.memory.write_obj(2_u16, GuestAddress(0x100c)).unwrap();
        self.memory.write_obj(count, GuestAddress(0x2002)).unwrap();
    }

    fn used_index(&self) -> u16 {
        // The device works on its own thread: give it a second.
        for _ in 0..1000 {
            let index = self.memory.read_obj(GuestAddress(0x3002)).unwrap();
            if index != 0 {
                return index;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        0
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.transport.link.send(Command::Stop);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_driver_that_keeps_the_order_gets_its_device() {
    let mut setup = Setup::new();
    assert_eq!(setup.get(0), MAGIC);
    assert_eq!((setup.get(4), setup.get(8), setup.get(0x34)), (2, 4, 64));
    setup.start();
    assert_eq!(setup.get(0x70), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    setup.request(1);
    setup.set(QUEUE_NOTIFY, 0);
    assert_eq!(setup.used_index(), 1);
}

#[test]
fn features_that_are_not_on_offer_are_refused() {
    let mut setup = Setup::new();
    setup.set(0x70, ACKNOWLEDGE);
    setup.set(0x70, ACKNOWLEDGE | DRIVER);
    setup.set(0x24, 1);
    setup.set(0x20, 0xff);
    setup.set(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(setup.get(0x70), ACKNOWLEDGE | DRIVER);
}

#[test]
fn a_legacy_driver_is_refused() {
    let mut setup = Setup::new();
    setup.set(0x70, ACKNOWLEDGE);
    setup.set(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(setup.get(0x70), ACKNOWLEDGE | DRIVER);
}

#[test]
fn steps_out_of_order_are_ignored() {
    let mut setup = Setup::new();
    setup.set(0x70, DRIVER_OK);
    assert_eq!(setup.get(0x70), 0);
    setup.set_up_queue();
    assert_eq!(setup.get(0x44), 0, "no queue can be ready before the features are agreed");
    setup.negotiate();
    setup.set(0x24, 0);
    setup.set(0x20, u32::MAX);
    setup.set(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(setup.get(0x70), ACKNOWLEDGE | DRIVER | FEATURES_OK, "features are frozen");
}

#[test]
fn a_reset_takes_everything_back() {
    let mut setup = Setup::new();
    setup.start();
    setup.set(0x70, 0);
    assert_eq!(setup.get(0x70), 0);
    assert_eq!(setup.get(0x44), 0);
    setup.start();
    setup.request(1);
    setup.set(QUEUE_NOTIFY, 0);
    assert_eq!(setup.used_index(), 1);
}

#[test]
fn a_queue_outside_memory_makes_the_device_need_a_reset() {
    let mut setup = Setup::new();
    setup.negotiate();
    setup.set_up_queue();
    setup.set(0x44, 0);
    setup.set(0xa4, 0x7fff);
    setup.set(0x44, 1);
    setup.set(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_ne!(setup.get(0x70) & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn an_active_device_survives_the_round_trip_with_work_waiting() {
    let mut setup = Setup::new();
    setup.start();
    setup.transport.link.ask(Command::Pause).unwrap();
    setup.request(1);
    let state = setup.transport.save().unwrap();
    let bytes = crate::persist::encode(&state).unwrap();
    setup.transport.link.send(Command::Resume);

    let (worker, link) = DeviceWorker::new(Rng::new()).unwrap();
    let state: TransportState = crate::persist::decode(&bytes).unwrap();
    let transport = MmioTransport::restore(link, setup.memory.clone(), state.clone()).unwrap();
    let thread = std::thread::spawn(|| worker.run().unwrap());
    let restored = Setup { transport, memory: setup.memory.clone(), thread: Some(thread) };
    assert_eq!(restored.used_index(), 1, "the request is served without a new kick");
    assert_eq!(restored.get(0x70), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_accesses_never_panic(
        accesses in prop::collection::vec((0_u64..0x140, any::<u32>(), 1_usize..=8, any::<bool>()), 1..200),
    ) {
        let mut setup = Setup::new();
        for (offset, value, length, write) in accesses {
            let mut data = u64::from(value).to_le_bytes();
            if write {
                setup.transport.write(offset, &data[..length]);
            } else {
                setup.transport.read(offset, &mut data[..length]);
            }
        }
    }

    #[test]
    fn arbitrary_register_values_never_panic(
        accesses in prop::collection::vec(
            (0_u64..0x40, prop_oneof![0_u32..16, Just(0x1000), any::<u32>()]), 1..200),
    ) {
        let mut setup = Setup::new();
        for (register, value) in accesses {
            setup.set(register * 4, value);
        }
    }
}
