//! Values as Go's `fmt` prints them: what an image's history says is made of these.

/// `%q` of a string.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
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
    out.push('"');
    out
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
        assert_eq!(list(&["a".into(), "b".into()]), "[a b]");
    }
}
