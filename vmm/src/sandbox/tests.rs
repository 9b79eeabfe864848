//! Confined threads, in processes of their own where the confinement must end one.

use super::*;
use std::sync::mpsc;

const NOTHING: Profile = Profile { name: "nothing", system_calls: &[], capabilities: &[] };

fn run<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    let ended = move |result| sender.send(result).unwrap();
    spawn("a-thread", &NOTHING, Sandbox::On, body, ended).unwrap().join().unwrap();
    receiver.recv().unwrap()
}

#[test]
fn a_confined_thread_works_and_is_named() {
    let name = run(|| thread::current().name().map(str::to_owned));
    assert_eq!(name.unwrap().unwrap(), "a-thread");
}

#[test]
fn a_confined_thread_has_no_capabilities_and_cannot_get_any() {
    const READS_CAPABILITIES: Profile = Profile {
        name: "reads capabilities",
        system_calls: &[Allow::Call(libc::SYS_capget), Allow::Call(libc::SYS_prctl)],
        capabilities: &[],
    };
    let (sender, receiver) = mpsc::channel();
    let body = || {
        // SAFETY: plain numbers.
        let no_new_privileges = unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) };
        (caps::read(None, CapSet::Permitted).unwrap().len(), no_new_privileges)
    };
    let ended = move |result| sender.send(result).unwrap();
    spawn("a-thread", &READS_CAPABILITIES, Sandbox::On, body, ended).unwrap().join().unwrap();
    assert_eq!(receiver.recv().unwrap().unwrap(), (0, 1));
}

#[test]
fn a_confined_thread_can_free_what_it_has_allocated() {
    // Below the size of blocks that are mappings of their own, and together more than the allocator keeps.
    run(|| drop(vec![vec![1_u8; 100_000]; 50])).unwrap();
}

#[test]
fn a_panic_is_reported_with_its_message() {
    let result: Result<(), String> = run(|| panic!("on purpose"));
    assert_eq!(result.unwrap_err(), "on purpose");
}

/// Forks, confines the child and makes it call `body`; returns its exit status.
fn status_of(body: impl FnOnce()) -> i32 {
    // SAFETY: the child makes only system calls and small allocations before it exits.
    match unsafe { libc::fork() } {
        0 => {
            Confinement::of(&NOTHING).apply().unwrap();
            body();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for the child just made.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            libc::WEXITSTATUS(status)
        }
    }
}

#[test]
fn a_forbidden_call_ends_the_process() {
    let call = |number| {
        // SAFETY: the two calls made here take nothing.
        let _ = unsafe { libc::syscall(number) };
    };
    assert_eq!(status_of(move || call(libc::SYS_getppid)), VIOLATION_STATUS);
    assert_eq!(status_of(move || call(libc::SYS_getpid)), 0);
}

#[test]
fn executable_memory_is_forbidden() {
    assert_eq!(
        status_of(|| {
            // SAFETY: a new anonymous mapping touches nothing.
            unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
        }),
        VIOLATION_STATUS
    );
}

#[test]
fn every_profile_can_be_installed() {
    use crate::devices::DeviceKind;
    let kinds =
        [DeviceKind::Net, DeviceKind::Block, DeviceKind::Rng, DeviceKind::Vsock, DeviceKind::Fs, DeviceKind::Pmem];
    for profile in kinds.into_iter().map(profiles::device).chain([&profiles::VCPU]) {
        let (sender, receiver) = mpsc::channel();
        let ended = move |result| sender.send(result).unwrap();
        spawn(profile.name, profile, Sandbox::On, || 7, ended).unwrap().join().unwrap();
        assert_eq!(receiver.recv().unwrap(), Ok(7), "{}", profile.name);
    }
}

#[test]
fn a_message_is_cut_at_its_buffers_end() {
    let mut message = Message::default();
    message.push_number(1234);
    message.push(&[b'x'; 500]);
    assert!(message.bytes.starts_with(b"1234xxx"));
    assert_eq!(message.length, 160);
}
