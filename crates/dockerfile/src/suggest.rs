//! "Did you mean": the nearest of some words.

/// Words at this distance or farther are not suggested.
const FAR: usize = 3;

/// The option nearest to `value`, if one is near. None if `value` is one of the options: then it
/// was not misspelt. Without `case_sensitive` the answer has the case of `value`.
///
/// ```
/// use cooper_dockerfile::suggest::nearest;
///
/// assert_eq!(nearest("alpin", ["alpine", "debian"], true).as_deref(), Some("alpine"));
/// assert_eq!(nearest("alpine", ["alpine"], true), None);
/// ```
pub fn nearest<'a>(
    value: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Option<String> {
    let fold = |text: &str| {
        if case_sensitive {
            text.to_owned()
        } else {
            text.to_lowercase()
        }
    };
    let wanted = fold(value);
    let mut best = (FAR, None);
    for option in options {
        let option = fold(option);
        if option == wanted {
            return None;
        }
        let distance = distance(&wanted, &option);
        if distance < best.0 {
            best = (distance, Some(option));
        }
    }
    let found = best.1?;
    if case_sensitive || value == value.to_lowercase() {
        Some(found)
    } else if value == value.to_uppercase() {
        Some(found.to_uppercase())
    } else {
        Some(found)
    }
}

/// `message`, with a suggestion behind it if there is one.
pub fn with_suggestion<'a>(
    message: impl Into<String>,
    value: &str,
    options: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> String {
    let message = message.into();
    match nearest(value, options, case_sensitive) {
        Some(found) => format!("{message} (did you mean {found}?)"),
        None => message,
    }
}

/// The number of letters to insert, remove or replace. Words whose lengths differ by [`FAR`] or
/// more are not compared letter by letter.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) >= FAR {
        return FAR;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("copy", "copy", 0),
            ("coppy", "copy", 1),
            ("form", "from", 2),
            ("abc", "xyz", 3),
            ("a", "abcdef", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn the_case_follows_the_value() {
        let options = ["FROM", "COPY"];
        assert_eq!(nearest("frm", options, false).as_deref(), Some("from"));
        assert_eq!(nearest("FRM", options, false).as_deref(), Some("FROM"));
        assert_eq!(nearest("copy", options, false), None);
        assert_eq!(nearest("xyzzy", options, false), None);
    }
}
