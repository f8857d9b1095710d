//! The `--flags` before an instruction's arguments.

enum Phase {
    Spaces,
    Word,
    Quote(char),
}

/// The flags, unquoted, and what stands behind them. Flags end with the first word that does not
/// begin with `--`, or with `--` itself.
pub(super) fn extract(line: &str) -> (Vec<String>, String) {
    let chars: Vec<char> = line.chars().collect();
    let rest = |from: usize| chars[from..].iter().collect::<String>();
    let mut flags = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut phase = Phase::Spaces;
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        match phase {
            Phase::Spaces => {
                if !c.is_whitespace() {
                    if c != '-' || chars.get(at + 1) != Some(&'-') {
                        return (flags, rest(at));
                    }
                    phase = Phase::Word;
                    continue;
                }
            }
            Phase::Word if c.is_whitespace() => {
                if word == "--" {
                    return (flags, rest(at));
                }
                flags.push(std::mem::take(&mut word));
                quoted = false;
                phase = Phase::Spaces;
            }
            Phase::Word if c == '\'' || c == '"' => {
                quoted = true;
                phase = Phase::Quote(c);
            }
            Phase::Quote(quote) if c == quote => phase = Phase::Word,
            // A backslash escapes the next character, and is dropped at the end.
            Phase::Word | Phase::Quote(_) if c == '\\' => {
                if let Some(&next) = chars.get(at + 1) {
                    word.push(next);
                    at += 1;
                }
            }
            Phase::Word | Phase::Quote(_) => word.push(c),
        }
        at += 1;
    }
    if !matches!(phase, Phase::Spaces) && word != "--" && (quoted || !word.is_empty()) {
        flags.push(word);
    }
    (flags, String::new())
}
