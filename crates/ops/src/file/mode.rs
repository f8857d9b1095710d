//! Modes in the symbolic form of chmod(1): `u=rwX,go=rX`.

/// Changes to a mode, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Changes(Vec<Change>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    /// The bits of those whom it is for, and their set-id and sticky bits.
    who: u32,
    operator: Operator,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Bits for everybody, of which those of `who` count; whether `X` is among them.
    Bits(u32, bool),
    /// The bits that user, group or others have: how far they are shifted.
    Copy(u32),
}

const USER: u32 = 0o4700;
const GROUP: u32 = 0o2070;
const OTHER: u32 = 0o1007;

impl Changes {
    /// Reads an octal number or symbols.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid mode {text:?}");
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).map_err(|_| invalid())?;
            if bits > 0o7777 {
                return Err(invalid());
            }
            return Ok(Self(vec![Change {
                who: 0o7777,
                operator: Operator::Set,
                what: What::Bits(bits, false),
            }]));
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            Self::clause(clause, &mut changes).ok_or_else(invalid)?;
        }
        Ok(Self(changes))
    }

    fn clause(clause: &str, changes: &mut Vec<Change>) -> Option<()> {
        let begin = clause.find(['+', '-', '='])?;
        let mut who = 0;
        for c in clause[..begin].chars() {
            who |= match c {
                'u' => USER,
                'g' => GROUP,
                'o' => OTHER,
                'a' => 0o7777,
                _ => return None,
            };
        }
        if who == 0 {
            who = 0o7777;
        }
        let mut rest = &clause[begin..];
        while let Some(c) = rest.chars().next() {
            let operator = match c {
                '+' => Operator::Add,
                '-' => Operator::Remove,
                '=' => Operator::Set,
                _ => return None,
            };
            rest = &rest[1..];
            let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
            let what = Self::what(&rest[..end])?;
            rest = &rest[end..];
            changes.push(Change {
                who,
                operator,
                what,
            });
        }
        Some(())
    }

    fn what(text: &str) -> Option<What> {
        match text {
            "u" => return Some(What::Copy(6)),
            "g" => return Some(What::Copy(3)),
            "o" => return Some(What::Copy(0)),
            _ => {}
        }
        let (mut bits, mut conditional) = (0, false);
        for c in text.chars() {
            match c {
                'r' => bits |= 0o444,
                'w' => bits |= 0o222,
                'x' => bits |= 0o111,
                'X' => conditional = true,
                's' => bits |= 0o6000,
                't' => bits |= 0o1000,
                _ => return None,
            }
        }
        Some(What::Bits(bits, conditional))
    }

    /// The mode that `mode` (twelve bits) becomes.
    pub(super) fn apply(&self, mode: u32, directory: bool) -> u32 {
        let before = mode;
        self.0.iter().fold(mode, |mode, change| {
            let bits = match change.what {
                What::Bits(bits, conditional) => {
                    // Only where somebody may already: what is executable, and directories.
                    let execute = conditional && (directory || before & 0o111 != 0);
                    bits | if execute { 0o111 } else { 0 }
                }
                What::Copy(shift) => ((mode >> shift) & 0o7) * 0o111,
            };
            match change.operator {
                Operator::Add => mode | (bits & change.who),
                Operator::Remove => mode & !(bits & change.who),
                Operator::Set => (mode & !change.who) | (bits & change.who),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_become_what_chmod_makes_of_them() {
        for (text, mode, directory, expected) in [
            ("755", 0o644, false, 0o755),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("a+x", 0o644, false, 0o755),
            ("+x", 0o644, false, 0o755),
            ("go-rwx", 0o777, false, 0o700),
            ("g=u", 0o740, false, 0o770),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("o+t", 0o755, true, 0o1755),
            ("u=rw,u+x", 0o000, false, 0o700),
            ("u=r+w", 0o000, false, 0o600),
            ("=", 0o777, false, 0),
        ] {
            let changes = Changes::parse(text).unwrap();
            let found = changes.apply(mode, directory);
            assert_eq!(found, expected, "{text} of {mode:o}: {found:o}");
        }
        for text in ["", "x", "u", "z+x", "u+q", "99999", "888", "u+x,"] {
            assert!(Changes::parse(text).is_err(), "{text}");
        }
    }
}
