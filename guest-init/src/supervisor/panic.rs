//! The supervisor's own failure is the pod's: it is told, and then the walls fall. It never hangs.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use podvm_pod::exit::PODVM_ERROR;
use podvm_pod::protocol::{Event, write_frame};
use podvm_pod::status::PodReport;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::step::note;

/// How long the report may take to be sent and read.
const PATIENCE: Duration = Duration::from_secs(3);

/// From now on a panic ends the pod: it is reported on `primary`, a copy of the primary connection, and `leave` is called.
pub fn report_panics(primary: OwnedFd, leave: fn() -> !) {
    std::panic::set_hook(Box::new(move |panic| {
        note(format_args!("this is a defect of podvm: {panic}"));
        report(&primary, &format!("the supervisor failed, which is a defect of podvm: {panic}"));
        leave()
    }));
}

fn report(primary: &OwnedFd, message: &str) {
    let until = Instant::now() + PATIENCE;
    let mut wire = Vec::new();
    let report = PodReport::failure(PODVM_ERROR, message);
    if write_frame(&mut wire, &Event::Finished(report)).is_err() {
        return;
    }
    while !wire.is_empty() && wait_for(primary, PollFlags::OUT, until) {
        match nix::unistd::write(primary, &wire) {
            Ok(length) => drop(wire.drain(..length)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
    }
    // Whatever comes now, a farewell or the end, means that the report was read.
    wait_for(primary, PollFlags::IN, until);
}

fn wait_for(fd: &OwnedFd, events: PollFlags, until: Instant) -> bool {
    let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap_or_default();
    poll(&mut [PollFd::new(fd, events)], Some(&left)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use podvm_pod::protocol::read_frame;

    use super::*;

    #[test]
    fn a_defect_is_reported_as_the_pods_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reporter = std::thread::spawn(move || report(&ours.into(), "of no use"));
        let Event::Finished(report) = read_frame(&mut theirs).unwrap() else { panic!("another event") };
        assert_eq!((report.code, report.error.as_deref()), (PODVM_ERROR, Some("of no use")));
        drop(theirs);
        reporter.join().unwrap();
    }
}
