//! Turns a profile's list of system calls into a BPF program (Linux `Documentation/userspace-api/seccomp_filter.rst`).
//!
//! The program finds the call's number by bisection. When a filter is installed the kernel tries it once for every
//! system call there is; with a chain of comparisons that would cost each thread's start a millisecond.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

use super::Allow;

// Instructions of classic BPF (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

// Verdicts (linux/seccomp.h).
const ALLOW: u32 = 0x7fff_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const THIS_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const THIS_ARCHITECTURE: u32 = 0xc000_00b7;

/// What happens to one system call.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Forbidden,
    Allowed,
    /// Allowed if one of the conditions holds.
    If(Vec<Condition>),
}

/// A condition on the low half of an argument.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Condition {
    argument: u8,
    mask: u32,
    value: u32,
}

/// A run of numbers with the same verdict, from `first` to before the next span's.
struct Span {
    first: u32,
    verdict: Verdict,
}

/// The program that allows exactly `allowed`; everything else traps.
pub fn compile<'a>(allowed: impl Iterator<Item = &'a Allow>) -> BpfProgram {
    let spans = spans(&verdicts(allowed));
    let mut program = vec![
        plain(LOAD_WORD, ARCHITECTURE),
        jump(JUMP_IF_EQUAL, THIS_ARCHITECTURE, 1, 0),
        plain(RETURN, KILL_PROCESS),
        plain(LOAD_WORD, NUMBER),
    ];
    program.extend(bisect(&spans));
    program
}

fn verdicts<'a>(allowed: impl Iterator<Item = &'a Allow>) -> BTreeMap<u32, Verdict> {
    let mut verdicts = BTreeMap::new();
    for allow in allowed {
        let (number, conditions) = match *allow {
            Allow::Call(number) => (number, None),
            Allow::CallWith(number, argument, values) => {
                let condition = |value: &u32| Condition { argument, mask: u32::MAX, value: *value };
                (number, Some(values.iter().map(condition).collect::<Vec<_>>()))
            }
            Allow::CallWithout(number, argument, bits) => {
                (number, Some(vec![Condition { argument, mask: bits, value: 0 }]))
            }
        };
        // Numbers are small and positive.
        let verdict = verdicts.entry(number as u32).or_insert(Verdict::If(Vec::new()));
        match (verdict, conditions) {
            (verdict, None) => *verdict = Verdict::Allowed,
            (Verdict::If(known), Some(conditions)) => known.extend(conditions),
            // Allowed whatever its arguments already.
            (Verdict::Allowed | Verdict::Forbidden, Some(_)) => {}
        }
    }
    verdicts
}

fn spans(verdicts: &BTreeMap<u32, Verdict>) -> Vec<Span> {
    let mut spans = vec![Span { first: 0, verdict: Verdict::Forbidden }];
    let mut push = |first: u32, verdict: Verdict| match spans.last_mut() {
        Some(last) if last.verdict == verdict => {}
        Some(last) if last.first == first => last.verdict = verdict,
        _ => spans.push(Span { first, verdict }),
    };
    for (number, verdict) in verdicts {
        push(*number, verdict.clone());
        if !verdicts.contains_key(&(number + 1)) {
            push(number + 1, Verdict::Forbidden);
        }
    }
    spans
}

/// Code that jumps to the span that holds the loaded number.
fn bisect(spans: &[Span]) -> Vec<sock_filter> {
    let [span] = spans else {
        let (low, high) = spans.split_at(spans.len() / 2);
        let low_code = bisect(low);
        // Conditional jumps reach 255 instructions; the unconditional one reaches all.
        let mut code = vec![jump(JUMP_IF_GREATER_OR_EQUAL, high[0].first, 0, 1), plain(JUMP, low_code.len() as u32)];
        code.extend(low_code);
        code.extend(bisect(high));
        return code;
    };
    match &span.verdict {
        Verdict::Forbidden => vec![plain(RETURN, TRAP)],
        Verdict::Allowed => vec![plain(RETURN, ALLOW)],
        Verdict::If(conditions) => {
            let mut code: Vec<_> = conditions.iter().flat_map(check).collect();
            code.push(plain(RETURN, TRAP));
            code
        }
    }
}

fn check(condition: &Condition) -> [sock_filter; 4] {
    [
        plain(LOAD_WORD, ARGUMENTS + 8 * u32::from(condition.argument)),
        plain(AND, condition.mask),
        jump(JUMP_IF_EQUAL, condition.value, 0, 1),
        plain(RETURN, ALLOW),
    ]
}

fn plain(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::profiles;
    use proptest::prelude::*;

    /// Runs a program as the kernel would; also returns the number of steps.
    fn run(program: &[sock_filter], data: &[u32; 16]) -> (u32, usize) {
        let (mut accumulator, mut at) = (0_u32, 0);
        for steps in 1..10_000 {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD_WORD => accumulator = data[k as usize / 4],
                AND => accumulator &= k,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += usize::from(if accumulator == k { jt } else { jf }),
                JUMP_IF_GREATER_OR_EQUAL => at += usize::from(if accumulator >= k { jt } else { jf }),
                RETURN => return (k, steps),
                _ => panic!("unknown instruction {code:#x}"),
            }
        }
        panic!("the program does not end");
    }

    fn call(number: u32, arguments: [u32; 6]) -> [u32; 16] {
        let mut data = [0; 16];
        (data[0], data[1]) = (number, THIS_ARCHITECTURE);
        for (n, argument) in arguments.into_iter().enumerate() {
            data[4 + 2 * n] = argument;
        }
        data
    }

    const LIST: &[Allow] = &[
        Allow::Call(0),
        Allow::Call(1),
        Allow::CallWith(16, 1, &[0xae80, 0x5401]),
        Allow::CallWithout(9, 2, 4),
        Allow::CallWith(16, 1, &[7]),
        Allow::Call(300),
    ];

    #[test]
    fn exactly_the_listed_calls_are_allowed() {
        let program = compile(LIST.iter());
        let verdict = |number, argument: u32| run(&program, &call(number, [0, argument, argument, 0, 0, 0])).0;
        for number in (0..400).chain([0x4000_0000, u32::MAX]) {
            let expected = if matches!(number, 0 | 1 | 300) { ALLOW } else { TRAP };
            assert_eq!(verdict(number, 0xffff), expected, "{number}");
        }
        assert_eq!((verdict(16, 0xae80), verdict(16, 7), verdict(16, 8)), (ALLOW, ALLOW, TRAP));
        assert_eq!((verdict(9, 3), verdict(9, 7)), (ALLOW, TRAP));
    }

    #[test]
    fn another_architecture_ends_the_process() {
        let mut data = call(0, [0; 6]);
        data[1] = 0x4000_0003;
        assert_eq!(run(&compile(LIST.iter()), &data).0, KILL_PROCESS);
    }

    #[test]
    fn no_plain_call_takes_more_than_thirty_steps() {
        let program = compile(profiles::COMMON.iter());
        for number in 0..500 {
            let (verdict, steps) = run(&program, &call(number, [0; 6]));
            assert!(steps <= 30, "{number}: {steps} steps, verdict {verdict:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_set_of_numbers_is_told_apart(
            numbers in prop::collection::btree_set(0_u32..450, 0..200),
            probe in 0_u32..500,
        ) {
            let list: Vec<_> = numbers.iter().map(|number| Allow::Call(i64::from(*number))).collect();
            let expected = if numbers.contains(&probe) { ALLOW } else { TRAP };
            prop_assert_eq!(run(&compile(list.iter()), &call(probe, [0; 6])).0, expected);
        }
    }
}
