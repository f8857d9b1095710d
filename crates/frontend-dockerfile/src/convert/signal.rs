//! Names of signals.

const NAMES: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Whether a text is a number, or the name of a signal with or without `SIG`.
pub(super) fn is_signal(text: &str) -> bool {
    if text.parse::<i64>().is_ok() {
        return true;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.contains(&name) || is_real_time(name)
}

/// `RTMIN`, `RTMIN+1` to `RTMIN+15`, `RTMAX-14` to `RTMAX-1`, `RTMAX`.
fn is_real_time(name: &str) -> bool {
    let within = |text: &str, sign: char, most: u8| match text.strip_prefix(sign) {
        Some(number) => number.parse().is_ok_and(|n: u8| (1..=most).contains(&n)),
        None => text.is_empty(),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return within(rest, '+', 15);
    }
    name.strip_prefix("RTMAX")
        .is_some_and(|rest| within(rest, '-', 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for text in ["9", "SIGTERM", "term", "RTMIN", "SIGRTMIN+3", "RTMAX-14"] {
            assert!(is_signal(text), "{text}");
        }
        for text in ["", "FOO", "SIG", "RTMIN+16", "RTMAX+1", "RTMIN3"] {
            assert!(!is_signal(text), "{text}");
        }
    }
}
