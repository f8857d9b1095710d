//! One line of comma-separated values, as flags of the command line hold them.

/// Why a line is not one of comma-separated values. The wording is Go's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsvError {
    /// There is nothing.
    #[error("EOF")]
    Empty,
    /// A quoted field does not end, or goes on behind its end.
    #[error("extraneous or missing \" in quoted-field")]
    Quoted,
    /// A quote within a field that does not begin with one.
    #[error("bare \" in non-quoted-field")]
    Bare,
}

/// The fields. One in quotes may hold commas, and `""` for a quote.
///
/// ```
/// use cooper_dockerfile::csv::fields;
///
/// assert_eq!(fields("a,\"b,c\",")?, ["a", "b,c", ""]);
/// # Ok::<_, cooper_dockerfile::csv::CsvError>(())
/// ```
pub fn fields(line: &str) -> Result<Vec<String>, CsvError> {
    if line.is_empty() {
        return Err(CsvError::Empty);
    }
    let mut fields = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        let mut field = String::new();
        let quoted = chars.peek() == Some(&'"');
        if quoted {
            chars.next();
            loop {
                match chars.next() {
                    None => return Err(CsvError::Quoted),
                    Some('"') if chars.peek() == Some(&'"') => {
                        chars.next();
                        field.push('"');
                    }
                    Some('"') => break,
                    Some(c) => field.push(c),
                }
            }
        }
        loop {
            match chars.next() {
                None => {
                    fields.push(field);
                    return Ok(fields);
                }
                Some(',') => break,
                Some(_) if quoted => return Err(CsvError::Quoted),
                Some('"') => return Err(CsvError::Bare),
                Some(c) => field.push(c),
            }
        }
        fields.push(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (line, expected) in [
            ("a", Ok(vec!["a"])),
            ("a,b", Ok(vec!["a", "b"])),
            (",", Ok(vec!["", ""])),
            ("\"a\"\"b\"", Ok(vec!["a\"b"])),
            ("\"a\",b", Ok(vec!["a", "b"])),
            ("", Err(CsvError::Empty)),
            ("\"a", Err(CsvError::Quoted)),
            ("\"a\"b", Err(CsvError::Quoted)),
            ("a\"b", Err(CsvError::Bare)),
        ] {
            let expected = expected.map(|fields| fields.into_iter().map(String::from).collect());
            assert_eq!(fields(line), expected, "{line}");
        }
    }
}
