//! The filter program: classic BPF over `struct seccomp_data` (linux/seccomp.h, linux/filter.h).
//!
//! First the architecture, then a binary search over the calls' numbers, then the cases of the call found. The kernel
//! remembers which calls a program allows whatever their arguments, so only calls with cases cost time.

use super::{Case, Decision, Policy, Test, Verdict};

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
pub(super) const NATIVE_ARCH: u32 = 0xc000_003e;
/// From here on numbers are those of the x32 ABI.
const X32_BASE: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// A filter program, ready for the kernel.
#[derive(Debug, Clone)]
pub struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// The program's instructions.
    pub fn program(&self) -> &[libc::sock_filter] {
        &self.0
    }
}

fn instruction(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

fn answer(verdict: Verdict) -> libc::sock_filter {
    let value = match verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno.min(4095)),
        Verdict::Kill => libc::SECCOMP_RET_KILL_PROCESS,
    };
    instruction(RETURN, value)
}

/// A run of numbers, from `start` to the next span's start, with one decision.
struct Span<'a> {
    start: u32,
    decision: &'a Decision,
}

impl Policy {
    /// Makes the program.
    pub(super) fn compile(&self) -> Filter {
        let otherwise = Decision::from(self.otherwise);
        let mut program = vec![
            instruction(LOAD, ARCH_OFFSET),
            branch(JUMP_EQUAL, NATIVE_ARCH, 1, 0),
            answer(Verdict::Kill),
            instruction(LOAD, NUMBER_OFFSET),
            branch(JUMP_AT_LEAST, X32_BASE, 0, 1),
            answer(Verdict::Errno(libc::ENOSYS as u16)),
        ];
        program.extend(search(&self.spans(&otherwise)));
        Filter(program)
    }

    fn spans<'a>(&'a self, otherwise: &'a Decision) -> Vec<Span<'a>> {
        let mut spans: Vec<Span<'a>> = Vec::new();
        let mut add = |start, decision: &'a Decision| {
            if spans.last().is_none_or(|last| last.decision != decision) {
                spans.push(Span { start, decision });
            }
        };
        let mut next = 0;
        for (number, decision) in &self.calls {
            if *number > next {
                add(next, otherwise);
            }
            add(*number, decision);
            next = number + 1;
        }
        add(next, otherwise);
        spans
    }
}

fn search(spans: &[Span<'_>]) -> Vec<libc::sock_filter> {
    let [_, _, ..] = spans else { return spans.first().map_or_else(Vec::new, |span| leaf(span.decision)) };
    let (below, above) = spans.split_at(spans.len() / 2);
    let pivot = above[0].start;
    let (below, above) = (search(below), search(above));
    let mut program = match u8::try_from(below.len()) {
        Ok(distance) => vec![branch(JUMP_AT_LEAST, pivot, distance, 0)],
        Err(_) => vec![branch(JUMP_AT_LEAST, pivot, 0, 1), instruction(JUMP, below.len() as u32)],
    };
    program.extend(below);
    program.extend(above);
    program
}

fn leaf(decision: &Decision) -> Vec<libc::sock_filter> {
    let mut program = Vec::new();
    for Case { tests, verdict } in &decision.cases {
        for (index, Test { argument, mask, value }) in tests.iter().enumerate() {
            // Past the tests that are left, three instructions each, and the answer.
            let skip = 3 * (tests.len() - index - 1) + 1;
            // The lower half comes first: the architecture is little-endian.
            program.push(instruction(LOAD, ARGUMENTS_OFFSET + 8 * u32::from(*argument)));
            program.push(instruction(AND, *mask));
            program.push(branch(JUMP_EQUAL, *value, 0, skip as u8));
        }
        program.push(answer(*verdict));
    }
    program.push(answer(decision.otherwise));
    program
}

#[cfg(test)]
impl Filter {
    /// What the kernel would answer: an interpreter of the instructions used here.
    pub(super) fn run(&self, arch: u32, number: u32, arguments: [u64; 6]) -> Verdict {
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let libc::sock_filter { code, jt, jf, k } = self.0[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { jt } else { jf });
            match code {
                LOAD => {
                    accumulator = match k {
                        NUMBER_OFFSET => number,
                        ARCH_OFFSET => arch,
                        _ => arguments[(k - ARGUMENTS_OFFSET) as usize / 8] as u32,
                    }
                }
                AND => accumulator &= k,
                JUMP => at += k as usize,
                JUMP_EQUAL => at += jump(accumulator == k),
                JUMP_AT_LEAST => at += jump(accumulator >= k),
                RETURN => {
                    return match k & libc::SECCOMP_RET_ACTION_FULL {
                        libc::SECCOMP_RET_ALLOW => Verdict::Allow,
                        libc::SECCOMP_RET_ERRNO => Verdict::Errno(k as u16),
                        libc::SECCOMP_RET_KILL_PROCESS => Verdict::Kill,
                        other => panic!("return value {other:x}"),
                    };
                }
                other => panic!("instruction {other:x}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn verdicts() -> impl Strategy<Value = Verdict> {
        prop_oneof![Just(Verdict::Allow), Just(Verdict::Kill), (1u16..4096).prop_map(Verdict::Errno)]
    }

    proptest! {
        #[test]
        fn the_program_answers_as_the_policy_says(
            calls in proptest::collection::btree_map(0u32..600, verdicts(), 0..500), otherwise in verdicts()
        ) {
            let decisions: BTreeMap<u32, Decision> = calls.iter().map(|(n, v)| (*n, (*v).into())).collect();
            let filter = Policy { calls: decisions, otherwise }.compile();
            prop_assert!(filter.program().len() < 4096);
            for number in (0..620).chain([X32_BASE - 1]) {
                let expected = calls.get(&number).copied().unwrap_or(otherwise);
                prop_assert_eq!(filter.run(NATIVE_ARCH, number, [0; 6]), expected);
            }
        }
    }

    #[test]
    fn another_architecture_is_killed() {
        let filter = Policy { calls: BTreeMap::new(), otherwise: Verdict::Allow }.compile();
        assert_eq!(filter.run(0x4000_0003, 0, [0; 6]), Verdict::Kill);
    }

    #[test]
    fn the_kernel_takes_a_program() {
        let filter = Policy { calls: BTreeMap::new(), otherwise: Verdict::Allow }.compile();
        std::thread::spawn(move || {
            crate::sys::process::set_process_option(libc::PR_SET_NO_NEW_PRIVS, 1).unwrap();
            crate::sys::process::install_seccomp_filter(filter.program()).unwrap();
        })
        .join()
        .unwrap();
    }
}
