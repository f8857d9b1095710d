//! Values as Go's `fmt` prints them: what an image's history says is made of these.

/// `%q` of a string.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    text.chars().for_each(|c| quote_char(&mut out, c, '"'));
    out.push('"');
    out
}

/// `%q` of a number: the character that it stands for.
pub(crate) fn quote_number(number: i64) -> String {
    let c = u32::try_from(number).ok().and_then(char::from_u32);
    let mut out = String::from("'");
    quote_char(&mut out, c.unwrap_or(char::REPLACEMENT_CHARACTER), '\'');
    out.push('\'');
    out
}

fn quote_char(out: &mut String, c: char, mark: char) {
    match c {
        c if c == mark => out.extend(['\\', c]),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        c if c == ' ' || c.is_ascii_graphic() => out.push(c),
        c if c.is_ascii() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
        // What prints and what does not is Unicode's to say; controls and the odd spaces do not.
        c if c.is_control()
            || c.is_whitespace()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{feff}') =>
        {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        }
        c => out.push(c),
    }
}

/// `%q` of a list of strings.
pub(crate) fn quote_list(list: &[String]) -> String {
    let quoted: Vec<_> = list.iter().map(|text| quote(text)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `%v` of a list of strings.
pub(crate) fn list(list: &[String]) -> String {
    format!("[{}]", list.join(" "))
}

/// The words that Go takes for a boolean.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_prints_it() {
        assert_eq!(quote("a\"b\\c\n\té\x01"), r#""a\"b\\c\n\té\x01""#);
        assert_eq!(
            quote_list(&["/bin/sh".into(), "-c".into(), "a b".into()]),
            r#"["/bin/sh" "-c" "a b"]"#
        );
        assert_eq!(quote_list(&[]), "[]");
        for (number, quoted) in [
            (0, r"'\x00'"),
            (3, r"'\x03'"),
            (10, r"'\n'"),
            (39, r"'\''"),
            (48, "'0'"),
        ] {
            assert_eq!(quote_number(number), quoted);
        }
        assert_eq!(quote_number(-1), "'\u{fffd}'");
        assert_eq!(list(&["a".into(), "b".into()]), "[a b]");
    }
}
