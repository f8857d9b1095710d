use super::*;
use oci_spec::runtime::{
    LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator as Operator,
    LinuxSyscallBuilder,
};
use proptest::prelude::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;

/// A call as a filter sees it.
struct Call {
    number: u32,
    audit: u32,
    args: [u64; 6],
}

/// Runs a program as the kernel does.
fn decide(program: &[FilterInstruction], call: &Call) -> u32 {
    let (mut a, mut at) = (0_u32, 0_usize);
    loop {
        let FilterInstruction {
            code,
            if_true,
            if_false,
            operand,
        } = program[at];
        at += 1;
        let mut branch = |holds: bool| at += usize::from(if holds { if_true } else { if_false });
        match code {
            0x20 => {
                a = match operand {
                    0 => call.number,
                    4 => call.audit,
                    place => {
                        let arg = call.args[(place as usize - 16) / 8];
                        if place % 8 == 0 {
                            arg as u32
                        } else {
                            (arg >> 32) as u32
                        }
                    }
                }
            }
            0x05 => at += operand as usize,
            0x15 => branch(a == operand),
            0x25 => branch(a > operand),
            0x35 => branch(a >= operand),
            0x54 => a &= operand,
            0x06 => return operand,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn rule(names: &[&str], action: LinuxSeccompAction, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut rule = LinuxSyscallBuilder::default()
        .names(names)
        .action(action)
        .build()
        .unwrap();
    rule.set_args((!args.is_empty()).then_some(args));
    rule
}

fn arg(index: usize, op: Operator, value: u64, two: u64) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).op(op);
    builder.value(value).value_two(two).build().unwrap()
}

fn profile(rules: Vec<LinuxSyscall>, arches: Vec<Arch>) -> LinuxSeccomp {
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(1_u32)
        .architectures(arches)
        .syscalls(rules)
        .build()
        .unwrap()
}

fn asked(program: &[FilterInstruction], audit: u32, number: u32, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let call = Call {
        number,
        audit,
        args: all,
    };
    decide(program, &call)
}

#[test]
fn each_architecture_has_its_numbers() {
    let rules = vec![
        rule(
            &["read", "socketcall", "no_such_call"],
            LinuxSeccompAction::ScmpActAllow,
            vec![],
        ),
        rule(&["clone3"], LinuxSeccompAction::ScmpActErrno, vec![]),
    ];
    let arches = vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
    let program = Filter::compile(&profile(rules.clone(), arches), "x86_64")
        .unwrap()
        .program;
    let (refused, missing) = (0x5_0001, 0x5_0026);
    for (audit, number, expected) in [
        (X86_64, 0, ALLOW),
        (X86_64, 1, refused),
        (X86_64, 435, refused),
        (X86_64, 436, missing),
        (X86_64, 102, refused),
        (X86, 0, refused),
        (X86, 3, ALLOW),
        (X86, 102, ALLOW),
        (X86, 500, missing),
        (X86_64, 0x4000_0000, ALLOW),
        (X86_64, 0x4000_0001, refused),
        (X86_64, 0x4000_0000 + 436, missing),
        (X86_64, u32::MAX, refused),
        (0xc000_00b7, 63, KILL),
    ] {
        assert_eq!(
            asked(&program, audit, number, &[]),
            expected,
            "{audit:#x} {number}"
        );
    }
    // Without them the others are nobody's.
    let program = Filter::compile(&profile(rules, vec![]), "x86_64")
        .unwrap()
        .program;
    assert_eq!(asked(&program, X86, 3, &[]), KILL);
    assert_eq!(asked(&program, X86_64, 0x4000_0000, &[]), KILL);
    assert_eq!(asked(&program, X86_64, 0, &[]), ALLOW);
}

#[test]
fn every_action_is_the_kernels() {
    let actions = [
        (LinuxSeccompAction::ScmpActKill, 0),
        (LinuxSeccompAction::ScmpActKillThread, 0),
        (LinuxSeccompAction::ScmpActKillProcess, KILL),
        (LinuxSeccompAction::ScmpActTrap, 0x3_0000),
        (LinuxSeccompAction::ScmpActErrno, 0x5_0001),
        (LinuxSeccompAction::ScmpActTrace, 0x7ff0_0001),
        (LinuxSeccompAction::ScmpActLog, 0x7ffc_0000),
        (LinuxSeccompAction::ScmpActAllow, ALLOW),
    ];
    for (action, expected) in actions {
        let filter = Filter::compile(
            &profile(vec![rule(&["write"], action, vec![])], vec![]),
            "x86_64",
        );
        assert_eq!(
            asked(&filter.unwrap().program, X86_64, 1, &[]),
            expected,
            "{action:?}"
        );
    }
    let notify = profile(
        vec![rule(&["write"], LinuxSeccompAction::ScmpActNotify, vec![])],
        vec![],
    );
    let error = Filter::compile(&notify, "x86_64").unwrap_err();
    assert!(error.to_string().contains("SCMP_ACT_NOTIFY"), "{error}");
    assert!(Filter::compile(&notify, "vax").is_err());
}

#[test]
fn a_second_comparison_of_one_argument_is_another_way() {
    let args = vec![
        arg(0, Operator::ScmpCmpEq, 1, 0),
        arg(0, Operator::ScmpCmpEq, 3, 0),
    ];
    let rules = vec![rule(&["socket"], LinuxSeccompAction::ScmpActAllow, args)];
    let program = Filter::compile(&profile(rules, vec![]), "x86_64")
        .unwrap()
        .program;
    for (value, expected) in [(1, ALLOW), (2, 0x5_0001), (3, ALLOW)] {
        assert_eq!(asked(&program, X86_64, 41, &[value]), expected);
    }
}

fn holds(op: Operator, arg: u64, value: u64, two: u64) -> bool {
    match op {
        Operator::ScmpCmpNe => arg != value,
        Operator::ScmpCmpLt => arg < value,
        Operator::ScmpCmpLe => arg <= value,
        Operator::ScmpCmpEq => arg == value,
        Operator::ScmpCmpGe => arg >= value,
        Operator::ScmpCmpGt => arg > value,
        Operator::ScmpCmpMaskedEq => arg & value == two & value,
    }
}

fn operator() -> impl Strategy<Value = Operator> {
    prop_oneof![
        Just(Operator::ScmpCmpNe),
        Just(Operator::ScmpCmpLt),
        Just(Operator::ScmpCmpLe),
        Just(Operator::ScmpCmpEq),
        Just(Operator::ScmpCmpGe),
        Just(Operator::ScmpCmpGt),
        Just(Operator::ScmpCmpMaskedEq),
    ]
}

/// Numbers that are often equal in one half.
fn number() -> impl Strategy<Value = u64> {
    let half = prop_oneof![0..3_u64, Just(0xffff_ffff), Just(0x7e02_0000)];
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

proptest! {
    #[test]
    fn comparisons_are_of_64_bits(
        rules in prop::collection::vec(
            prop::collection::vec((operator(), number(), number()), 1..4), 1..6),
        args in prop::collection::vec(number(), 6),
    ) {
        let built = rules.iter().map(|comparisons| {
            let list = comparisons.iter().enumerate();
            let list = list.map(|(index, (op, value, two))| arg(index, *op, *value, *two));
            rule(&["ioctl"], LinuxSeccompAction::ScmpActAllow, list.collect())
        });
        let program = Filter::compile(&profile(built.collect(), vec![]), "x86_64").unwrap().program;
        let allowed = rules.iter().any(|comparisons| {
            let mut list = comparisons.iter().zip(&args);
            list.all(|((op, value, two), arg)| holds(*op, *arg, *value, *two))
        });
        let expected = if allowed { ALLOW } else { 0x5_0001 };
        prop_assert_eq!(asked(&program, X86_64, 16, &args), expected);
    }

    #[test]
    fn what_is_named_is_allowed_and_nothing_else(picked in prop::collection::btree_set(0..330_u32, 1..200)) {
        let names = table::numbers(Abi::X86_64);
        let chosen: Vec<&str> = names
            .iter()
            .filter(|(_, number)| picked.contains(number))
            .map(|(name, _)| *name)
            .collect();
        let rules = vec![rule(&chosen, LinuxSeccompAction::ScmpActAllow, vec![])];
        let program = Filter::compile(&profile(rules, vec![]), "x86_64").unwrap().program;
        let newest = chosen.iter().map(|name| names[name]).max();
        for number in 0..400 {
            let named = names.iter().any(|(name, known)| *known == number && chosen.contains(name));
            let expected = match (named, newest) {
                (true, _) => ALLOW,
                (false, Some(newest)) if number > newest => 0x5_0026,
                _ => 0x5_0001,
            };
            prop_assert_eq!(asked(&program, X86_64, number, &[]), expected, "{}", number);
        }
    }
}
