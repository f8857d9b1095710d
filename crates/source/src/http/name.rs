//! What a download is called, and when it was changed.

use reqwest::Url;
use time::PrimitiveDateTime;
use time::macros::format_description;

/// What a download is called when nothing says it.
const DEFAULT: &str = "download";

/// The name: what the client asked for, what the server says, or what the address ends in.
pub(super) fn filename(url: &Url, asked: &str, disposition: Option<&str>) -> String {
    if !asked.is_empty() {
        return safe(asked);
    }
    if let Some(name) = disposition.and_then(from_disposition) {
        return safe(&name);
    }
    safe(url.path())
}

/// The last part of a path if it can be a name, else [`DEFAULT`].
fn safe(path: &str) -> String {
    let name = path.trim().trim_end_matches('/').rsplit('/').next();
    match name {
        Some("" | "." | "..") | None => DEFAULT.into(),
        Some(name) if name.chars().any(char::is_control) => DEFAULT.into(),
        Some(name) => name.to_owned(),
    }
}

/// The parameter `filename` of a `Content-Disposition` (RFC 6266).
fn from_disposition(header: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    while let Some((name, value)) = rest.split_once('=') {
        let (value, after) = match value.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => match value.split_once(';') {
                Some((value, after)) => (value.trim().to_owned(), after),
                None => (value.trim().to_owned(), ""),
            },
        };
        if name.trim().eq_ignore_ascii_case("filename") {
            return Some(value).filter(|name| !name.is_empty() && !name.ends_with('/'));
        }
        rest = after.trim_start().trim_start_matches(';');
    }
    None
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((place, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[place + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// Seconds since 1970 of a date as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110).
pub(super) fn parse_time(text: &str) -> Option<i64> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let time = PrimitiveDateTime::parse(text, format).ok()?;
    Some(time.assume_utc().unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_whoever_knows_best_and_are_safe() {
        let url = Url::parse("https://host/a/b.tar.gz?x=/y").unwrap();
        let bare = Url::parse("https://host").unwrap();
        for (url, asked, disposition, expected) in [
            (&url, "", None, "b.tar.gz"),
            (&bare, "", None, "download"),
            (&url, "own", Some("attachment; filename=x"), "own"),
            (&url, "a/../..", None, "download"),
            (
                &url,
                "",
                Some("attachment; filename=\"c \\\"d\\\".txt\"; x=y"),
                "c \"d\".txt",
            ),
            (&url, "", Some("attachment; x=\"a;b\"; FileName=e"), "e"),
            (
                &url,
                "",
                Some("attachment; filename=\"../../etc/passwd\""),
                "passwd",
            ),
            (&url, "", Some("attachment"), "b.tar.gz"),
            (&url, "", Some("attachment; filename=\"open"), "b.tar.gz"),
        ] {
            assert_eq!(
                filename(url, asked, disposition),
                expected,
                "{disposition:?}"
            );
        }
    }

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(
            parse_time("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(784_111_777)
        );
        assert_eq!(parse_time("yesterday"), None);
    }
}
