//! How a VM that ended by itself is reported: what the guest was doing, and an exit code of its own for each way.

use podvm_pod::exit;
use podvm_pod::status::PodReport;
use podvm_vmm::vcpu::exit::VmExit;

/// The report of a pod whose VM ended this way. It counts only when the supervisor did not report the pod's end itself.
pub fn report(exit: &VmExit) -> PodReport {
    let code = match exit {
        VmExit::Panic { .. } => exit::GUEST_PANIC,
        VmExit::TripleFault(_) => exit::GUEST_TRIPLE_FAULT,
        VmExit::InternalError { .. } => exit::KVM_INTERNAL_ERROR,
        VmExit::EntryFailed { .. } => exit::VM_ENTRY_FAILED,
        VmExit::Reset | VmExit::Stopped => exit::NO_REPORT,
        VmExit::Unexpected { .. } | VmExit::RunFailed { .. } | VmExit::ThreadFailed { .. } => exit::PODVM_ERROR,
    };
    let message = match exit {
        VmExit::Reset => "the VM was reset from inside before its apps' ends were reported".into(),
        other => other.to_string(),
    };
    PodReport::failure(code, message)
}

#[cfg(test)]
mod tests {
    use podvm_vmm::vcpu::exit::Situation;

    use super::*;

    #[test]
    fn every_way_to_fall_has_its_own_code_and_tells_what_happened() {
        let situation = Situation { rip: 0xbad, ..Situation::default() };
        let internal = VmExit::InternalError { suberror: 1, instruction: vec![0xf0], situation: situation.clone() };
        let entry = VmExit::EntryFailed { reason: 5, situation: situation.clone() };
        let reports = [
            (report(&VmExit::Panic { message: "Attempted to kill init!".into() }), 240, "Attempted to kill init!"),
            (report(&VmExit::TripleFault(situation)), 241, "0xbad"),
            (report(&internal), 242, "suberror 1"),
            (report(&entry), 243, "hardware reason 0x5"),
            (report(&VmExit::Reset), 244, "reset from inside"),
        ];
        for (report, code, part) in reports {
            assert_eq!(report.code, code);
            assert!(report.error.as_deref().unwrap_or_default().contains(part), "{report:?}");
        }
    }
}
