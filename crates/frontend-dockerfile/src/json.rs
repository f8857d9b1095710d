//! JSON with the escapes of Go's encoder: the bytes of an image configuration decide its digest.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// `value` in one line.
pub(crate) fn to_vec(value: &impl Serialize) -> Vec<u8> {
    write(value, CompactFormatter)
}

/// `value` indented by two spaces.
pub(crate) fn to_vec_pretty(value: &impl Serialize) -> Vec<u8> {
    write(value, PrettyFormatter::with_indent(b"  "))
}

fn write(value: &impl Serialize, formatter: impl Formatter) -> Vec<u8> {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, Go(formatter));
    value
        .serialize(&mut serializer)
        .expect("maps have keys that are strings, and a Vec takes all");
    out
}

/// Escapes what Go escapes besides: `<`, `>`, `&`, U+2028 and U+2029.
struct Go<F>(F);

macro_rules! as_inner {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {$(
        fn $name<W: ?Sized + io::Write>(&mut self, writer: &mut W $(, $arg: $kind)*) -> io::Result<()> {
            self.0.$name(writer $(, $arg)*)
        }
    )*};
}

impl<F: Formatter> Formatter for Go<F> {
    as_inner! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let special = |c| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        let mut rest = fragment;
        while let Some(at) = rest.find(special) {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let c = tail.chars().next().unwrap_or_default();
            write!(writer, "\\u{:04x}", u32::from(c))?;
            rest = &tail[c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_writes_it() {
        let value = serde_json::json!({"a": ["<b>&\u{2028}\n\"é"], "e": {}, "n": []});
        let text = String::from_utf8_lossy(&to_vec(&value)).into_owned();
        assert_eq!(
            text,
            r#"{"a":["\u003cb\u003e\u0026\u2028\n\"é"],"e":{},"n":[]}"#
        );
        let text = String::from_utf8_lossy(&to_vec_pretty(&value)).into_owned();
        assert!(text.contains("\n  \"a\": [\n    \"\\u003cb"), "{text}");
    }
}
