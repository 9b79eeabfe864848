//! What the guest's CPUID instruction says.
//!
//! It starts from what KVM supports, keeps only known leaves, and replaces what would describe the host:
//! its APIC ids, its core and cache topology, its brand string, its performance counters. What KVM leaves
//! to us is completed: the TSC-deadline timer, the hypervisor bit, one package of N cores.
//!
//! Leaves are those of Intel's Software Developer's Manual (volume 2A, CPUID) and AMD's Architecture
//! Programmer's Manual (volume 3, appendix E).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaves that a guest may see. Everything else (cache prefetch hints, serial numbers, SGX, processor trace,
/// frequencies, resource directors) is left out.
const KNOWN_LEAVES: &[u32] = &[
    0x0,
    0x1,
    0x2,
    0x4,
    0x5,
    0x6,
    0x7,
    0xa,
    0xb,
    0xd,
    0x15,
    0x19,
    0x1f,
    0x4000_0000,
    0x4000_0001,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_000a,
    0x8000_0019,
    0x8000_001d,
    0x8000_001e,
    0x8000_0021,
];

/// Forty-eight bytes that replace the host's model name.
const BRAND: &[u8; 48] = b"podvm virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

const LEAF_1_ECX_MONITOR: u32 = 1 << 3;
const LEAF_1_ECX_VMX: u32 = 1 << 5;
const LEAF_1_ECX_PDCM: u32 = 1 << 15;
const LEAF_1_ECX_X2APIC: u32 = 1 << 21;
const LEAF_1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF_1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF_1_EDX_MULTI_THREADING: u32 = 1 << 28;
const LEAF_7_EBX_SGX: u32 = 1 << 2;
const LEAF_7_EBX_RESOURCES: u32 = 1 << 12 | 1 << 15;
const LEAF_7_EBX_PROCESSOR_TRACE: u32 = 1 << 25;
const LEAF_7_EDX_AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
const LEAF_8000_0001_ECX_CMP_LEGACY: u32 = 1 << 1;
const LEAF_8000_0001_ECX_SVM: u32 = 1 << 2;
const LEAF_8000_0001_ECX_PERFORMANCE: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// "Auth", the start of AMD's vendor string.
const VENDOR_EBX_AMD: u32 = 0x6874_7541;

const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What of the host's abilities decides about leaves.
#[derive(Clone, Copy, Debug)]
pub struct CpuidHost {
    /// KVM can deliver the TSC-deadline timer.
    pub tsc_deadline: bool,
}

/// The leaves of CPU `id` of `count`, from what KVM supports.
pub fn for_vcpu(supported: &CpuId, host: CpuidHost, id: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
    let known = supported.as_slice().iter().filter(|entry| KNOWN_LEAVES.contains(&entry.function));
    let mut entries: Vec<_> = known.copied().collect();
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    entries.extend(topology(0xb, id, count));
    let has_1f = supported.as_slice().iter().any(|entry| entry.function == 0x1f);
    if has_1f {
        entries.extend(topology(0x1f, id, count));
    }
    // A CPU that has leaf 0xb says so in leaf 0.
    for entry in entries.iter_mut().filter(|entry| entry.function == 0) {
        entry.eax = entry.eax.clamp(0xb, 0x1f);
    }
    let is_amd = entries.iter().any(|entry| entry.function == 0 && entry.ebx == VENDOR_EBX_AMD);
    for entry in &mut entries {
        adapt(entry, host, id, count);
        if entry.function == 0x8000_0001 && is_amd && count > 1 {
            entry.ecx |= LEAF_8000_0001_ECX_CMP_LEGACY;
        }
    }
    entries
}

fn adapt(entry: &mut kvm_cpuid_entry2, host: CpuidHost, id: u8, count: u8) {
    match entry.function {
        0x1 => adapt_leaf_1(entry, host, id, count),
        0x4 => adapt_cache(entry, count),
        // No MONITOR/MWAIT, no performance counters.
        0x5 | 0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // Of power management only the always-running APIC timer.
        0x6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & 0x4, 0, 0, 0),
        0x7 if entry.index == 0 => {
            entry.ebx &= !(LEAF_7_EBX_SGX | LEAF_7_EBX_RESOURCES | LEAF_7_EBX_PROCESSOR_TRACE);
            entry.edx &= !LEAF_7_EDX_AMX;
        }
        0x8000_0001 => {
            entry.ecx &= !(LEAF_8000_0001_ECX_SVM | LEAF_8000_0001_ECX_PERFORMANCE);
        }
        0x8000_0002..=0x8000_0004 => set_brand(entry),
        // Number of cores and the size of their ids.
        0x8000_0008 => entry.ecx = u32::from(count - 1) | id_bits(count) << 12,
        // Nested virtualization is not offered.
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_001d => adapt_cache(entry, count),
        // Extended APIC id; one thread a core, one node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id.into(), id.into(), 0, 0),
        _ => {}
    }
}

fn adapt_leaf_1(entry: &mut kvm_cpuid_entry2, host: CpuidHost, id: u8, count: u8) {
    let cache_line = entry.ebx & 0x0000_ff00;
    entry.ebx = u32::from(id) << 24 | u32::from(count) << 16 | cache_line | entry.ebx & 0xff;
    entry.ecx &= !(LEAF_1_ECX_MONITOR | LEAF_1_ECX_VMX | LEAF_1_ECX_PDCM | LEAF_1_ECX_TSC_DEADLINE);
    entry.ecx |= LEAF_1_ECX_HYPERVISOR | LEAF_1_ECX_X2APIC;
    if host.tsc_deadline {
        entry.ecx |= LEAF_1_ECX_TSC_DEADLINE;
    }
    entry.edx &= !LEAF_1_EDX_MULTI_THREADING;
    if count > 1 {
        entry.edx |= LEAF_1_EDX_MULTI_THREADING;
    }
}

/// Intel's leaf 4 and AMD's 0x8000001d: which CPUs share a cache. The last level is shared by all.
fn adapt_cache(entry: &mut kvm_cpuid_entry2, count: u8) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = entry.eax >> 5 & 0x7;
    let sharing = if level >= 3 { u32::from(count - 1) } else { 0 };
    let cores = if entry.function == 0x4 { u32::from(count - 1) } else { 0 };
    entry.eax = entry.eax & 0x3fff | sharing << 14 | cores.min(0x3f) << 26;
}

fn set_brand(entry: &mut kvm_cpuid_entry2) {
    let start = (entry.function - 0x8000_0002) as usize * 16;
    let word = |n: usize| {
        let at = start + n * 4;
        u32::from_le_bytes([BRAND[at], BRAND[at + 1], BRAND[at + 2], BRAND[at + 3]])
    };
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (word(0), word(1), word(2), word(3));
}

/// Leaf 0xb or 0x1f: one package of `count` cores with one thread each.
fn topology(function: u32, id: u8, count: u8) -> [kvm_cpuid_entry2; 3] {
    let leaf = |index: u32, eax: u32, ebx: u32, level: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | level << 8,
        edx: id.into(),
        ..Default::default()
    };
    [leaf(0, 0, 1, LEVEL_THREAD), leaf(1, id_bits(count), count.into(), LEVEL_CORE), leaf(2, 0, 0, 0)]
}

/// Bits that hold any CPU's number.
fn id_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_leaf(function: u32, index: u32, value: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: value, ebx: value, ecx: value, edx: value, ..Default::default() }
    }

    fn leaves(id: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        let all: Vec<_> = (0..0x20)
            .chain(0x4000_0000..0x4000_0002)
            .chain(0x8000_0000..0x8000_0022)
            .map(|function| host_leaf(function, 0, u32::MAX))
            .collect();
        let supported = CpuId::from_entries(&all).unwrap();
        for_vcpu(&supported, CpuidHost { tsc_deadline: true }, id, count)
    }

    fn leaf(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *leaves.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn the_hosts_brand_is_replaced() {
        let leaves = leaves(0, 1);
        let mut brand = Vec::new();
        for function in 0x8000_0002..=0x8000_0004 {
            let e = leaf(&leaves, function, 0);
            brand.extend([e.eax, e.ebx, e.ecx, e.edx].iter().flat_map(|word| word.to_le_bytes()));
        }
        assert!(brand.starts_with(b"podvm virtual CPU\0"));
    }

    #[test]
    fn every_cpu_sees_its_own_number_and_no_other() {
        for id in 0..4 {
            let leaves = leaves(id, 4);
            assert_eq!(leaf(&leaves, 1, 0).ebx >> 24, u32::from(id));
            assert_eq!(leaf(&leaves, 0xb, 0).edx, u32::from(id));
            assert_eq!(leaf(&leaves, 0x8000_001e, 0).eax, u32::from(id));
        }
    }

    #[test]
    fn four_cores_are_one_package_with_two_id_bits() {
        let leaves = leaves(0, 4);
        let core = leaf(&leaves, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx), (2, 4, 1 | LEVEL_CORE << 8));
        assert_eq!(leaf(&leaves, 0x8000_0008, 0).ecx, 3 | 2 << 12);
        assert_eq!(leaf(&leaves, 1, 0).ebx >> 16 & 0xff, 4);
    }

    #[test]
    fn counters_and_nested_virtualization_are_not_offered() {
        let leaves = leaves(0, 2);
        assert_eq!(leaf(&leaves, 0xa, 0).eax, 0);
        assert_eq!(leaf(&leaves, 1, 0).ecx & (LEAF_1_ECX_VMX | LEAF_1_ECX_PDCM), 0);
        assert_eq!(leaf(&leaves, 0x8000_0001, 0).ecx & LEAF_8000_0001_ECX_SVM, 0);
    }

    #[test]
    fn the_deadline_timer_follows_the_host() {
        let supported = CpuId::from_entries(&[host_leaf(1, 0, u32::MAX)]).unwrap();
        for offered in [false, true] {
            let leaves = for_vcpu(&supported, CpuidHost { tsc_deadline: offered }, 0, 1);
            assert_eq!(leaf(&leaves, 1, 0).ecx & LEAF_1_ECX_TSC_DEADLINE != 0, offered);
        }
    }

    #[test]
    fn unknown_leaves_are_left_out() {
        let leaves = leaves(0, 1);
        for function in [0x3, 0x12, 0x14, 0x16, 0x8000_001f] {
            assert!(!leaves.iter().any(|e| e.function == function), "{function:#x}");
        }
    }
}
