//! The program of a filter.

use std::collections::BTreeMap;

use cooper_sys::process::FilterInstruction;
use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Operator};

use super::table::{Abi, X32_BIT};
use crate::RuntimeError;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const KILL_PROCESS: u32 = 0x8000_0000;
/// The number of a call that a tracer has skipped.
const SKIPPED: u32 = u32::MAX;

/// A comparison of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    index: u32,
    operator: Operator,
    value: u64,
    /// What is compared with when [`Self::value`] is a mask.
    masked: u64,
}

impl Comparison {
    pub(super) fn new(arg: &LinuxSeccompArg) -> Result<Self, RuntimeError> {
        let index = u32::try_from(arg.index()).ok().filter(|index| *index < 6);
        let index = index.ok_or_else(|| {
            RuntimeError::unsupported(format!("the seccomp argument {}", arg.index()))
        })?;
        Ok(Self {
            index,
            operator: arg.op(),
            value: arg.value(),
            masked: arg.value_two().unwrap_or_default() & arg.value(),
        })
    }
}

/// What is decided when all comparisons hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) comparisons: Vec<Comparison>,
    pub(super) verdict: u32,
}

/// What is decided for a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Return(u32),
    /// The first rule that holds, or else the last value.
    Rules(Vec<Rule>, u32),
}

impl Verdict {
    pub(super) fn of(mut rules: Vec<Rule>, default: u32) -> Self {
        let Some(always) = rules.iter().position(|rule| rule.comparisons.is_empty()) else {
            return Self::Rules(rules, default);
        };
        let verdict = rules[always].verdict;
        rules.truncate(always);
        if rules.is_empty() {
            Self::Return(verdict)
        } else {
            Self::Rules(rules, verdict)
        }
    }
}

/// What is decided from which number on.
#[derive(Debug, Default)]
pub(super) struct Section(BTreeMap<u32, Verdict>);

impl Section {
    pub(super) fn put(&mut self, from: u32, verdict: Verdict) {
        self.0.insert(from, verdict);
    }
}

/// The program for sections by architecture. Architectures without one end the process, as
/// with libseccomp.
pub(super) fn program(sections: BTreeMap<u32, Section>, default: u32) -> Vec<FilterInstruction> {
    let mut program = vec![plain(LOAD, ARCHITECTURE)];
    for (audit, mut section) in sections {
        if audit == Abi::X32.audit() {
            // Without x32 in the profile its numbers are another architecture's.
            let other = Verdict::Return(KILL_PROCESS);
            section.0.entry(X32_BIT).or_insert(other);
            section.put(SKIPPED, Verdict::Return(default));
        }
        let mut ranges: Vec<(u32, Verdict)> = section.0.into_iter().collect();
        ranges.dedup_by(|next, before| next.1 == before.1);
        let tree = tree(&ranges);
        program.push(jump(IF_EQUAL, audit, 1, 0));
        program.push(plain(JUMP, length(&tree) + 1));
        program.push(plain(LOAD, NUMBER));
        program.extend(tree);
    }
    program.push(plain(RETURN, KILL_PROCESS));
    program
}

/// Decides among ranges, of which the number is in one, by halving.
fn tree(ranges: &[(u32, Verdict)]) -> Vec<FilterInstruction> {
    match ranges {
        [] => vec![plain(RETURN, KILL_PROCESS)],
        [(_, verdict)] => leaf(verdict),
        several => {
            let (lower, upper) = several.split_at(several.len() / 2);
            let (left, right) = (tree(lower), tree(upper));
            let from = upper[0].0;
            let mut program = match u8::try_from(left.len()) {
                Ok(skip) => vec![jump(IF_AT_LEAST, from, skip, 0)],
                Err(_) => vec![jump(IF_AT_LEAST, from, 0, 1), plain(JUMP, length(&left))],
            };
            program.extend(left);
            program.extend(right);
            program
        }
    }
}

fn leaf(verdict: &Verdict) -> Vec<FilterInstruction> {
    match verdict {
        Verdict::Return(value) => vec![plain(RETURN, *value)],
        Verdict::Rules(rules, otherwise) => {
            let mut program: Vec<_> = rules.iter().flat_map(rule).collect();
            program.push(plain(RETURN, *otherwise));
            program
        }
    }
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// This comparison holds.
    Pass,
    /// The rule does not.
    Fail,
    /// So many instructions further.
    Skip(usize),
}

fn rule(rule: &Rule) -> Vec<FilterInstruction> {
    let mut steps = Vec::new();
    for comparison in &rule.comparisons {
        let begin = steps.len();
        compare(comparison, &mut steps);
        let end = steps.len();
        for (place, (_, yes, no)) in steps.iter_mut().enumerate().skip(begin) {
            for to in [yes, no] {
                if let To::Pass = to {
                    *to = To::Skip(end - place - 1);
                }
            }
        }
    }
    let end = steps.len() + 1;
    let skip = |place: usize, to| {
        let skip = match to {
            To::Skip(skip) => skip,
            To::Fail => end - place - 1,
            To::Next | To::Pass => 0,
        };
        // Six comparisons of at most six instructions.
        u8::try_from(skip).unwrap_or(u8::MAX)
    };
    let steps = steps.iter().enumerate();
    let mut program: Vec<_> = steps
        .map(|(place, (instruction, yes, no))| FilterInstruction {
            if_true: skip(place, *yes),
            if_false: skip(place, *no),
            ..*instruction
        })
        .collect();
    program.push(plain(RETURN, rule.verdict));
    program
}

/// Arguments are 64 bits wide and the machine that runs the program 32: the upper half is
/// compared first.
fn compare(comparison: &Comparison, steps: &mut Vec<(FilterInstruction, To, To)>) {
    let low = ARGUMENTS + 8 * comparison.index;
    let high = low + 4;
    let mut step = |code, operand, yes, no| {
        steps.push((plain(code, operand), yes, no));
    };
    let (value_high, value_low) = halves(comparison.value);
    // An order is decided by the upper halves unless they are equal.
    let mut ordered = |code, greater, less, yes, no| {
        step(LOAD, high, To::Next, To::Next);
        step(IF_GREATER, value_high, greater, To::Next);
        step(IF_EQUAL, value_high, To::Next, less);
        step(LOAD, low, To::Next, To::Next);
        step(code, value_low, yes, no);
    };
    match comparison.operator {
        Operator::ScmpCmpGe => ordered(IF_AT_LEAST, To::Pass, To::Fail, To::Pass, To::Fail),
        Operator::ScmpCmpGt => ordered(IF_GREATER, To::Pass, To::Fail, To::Pass, To::Fail),
        Operator::ScmpCmpLt => ordered(IF_AT_LEAST, To::Fail, To::Pass, To::Fail, To::Pass),
        Operator::ScmpCmpLe => ordered(IF_GREATER, To::Fail, To::Pass, To::Fail, To::Pass),
        Operator::ScmpCmpNe => {
            step(LOAD, high, To::Next, To::Next);
            step(IF_EQUAL, value_high, To::Next, To::Pass);
            step(LOAD, low, To::Next, To::Next);
            step(IF_EQUAL, value_low, To::Fail, To::Pass);
        }
        Operator::ScmpCmpEq => {
            step(LOAD, high, To::Next, To::Next);
            step(IF_EQUAL, value_high, To::Next, To::Fail);
            step(LOAD, low, To::Next, To::Next);
            step(IF_EQUAL, value_low, To::Pass, To::Fail);
        }
        Operator::ScmpCmpMaskedEq => {
            let (masked_high, masked_low) = halves(comparison.masked);
            step(LOAD, high, To::Next, To::Next);
            step(AND, value_high, To::Next, To::Next);
            step(IF_EQUAL, masked_high, To::Next, To::Fail);
            step(LOAD, low, To::Next, To::Next);
            step(AND, value_low, To::Next, To::Next);
            step(IF_EQUAL, masked_low, To::Pass, To::Fail);
        }
    }
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

fn plain(code: u16, operand: u32) -> FilterInstruction {
    jump(code, operand, 0, 0)
}

fn jump(code: u16, operand: u32, if_true: u8, if_false: u8) -> FilterInstruction {
    FilterInstruction {
        code,
        if_true,
        if_false,
        operand,
    }
}

fn length(program: &[FilterInstruction]) -> u32 {
    u32::try_from(program.len()).unwrap_or(u32::MAX)
}
