#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

fn one(text: &str) -> Node {
    let dockerfile = parse(text.as_bytes()).unwrap();
    assert_eq!(dockerfile.nodes.len(), 1, "{text:?}");
    dockerfile.nodes.into_iter().next().unwrap()
}

fn fails(text: &str) -> (String, Option<u32>) {
    let error = parse(text.as_bytes()).unwrap_err();
    (error.to_string(), error.span().map(|span| span.start))
}

#[test]
fn arguments_come_in_many_forms() {
    for (text, args, json) in [
        ("FROM a AS b", vec!["a", "AS", "b"], false),
        ("FROM  a\tb", vec!["a", "b"], false),
        ("RUN echo  hi", vec!["echo  hi"], false),
        (r#"RUN ["echo","hi"]"#, vec!["echo", "hi"], true),
        (r#"RUN ["a", "b"] && c"#, vec![r#"["a", "b"] && c"#], false),
        ("RUN ['a']", vec!["['a']"], false),
        ("CMD []", vec![], true),
        ("COPY a b c", vec!["a", "b", "c"], false),
        (r#"COPY ["a b","c"]"#, vec!["a b", "c"], true),
        (
            "ENV a=b c='d e'",
            vec!["a", "b", "=", "c", "'d e'", "="],
            false,
        ),
        ("ENV a b  c", vec!["a", "b  c", ""], false),
        ("ENV a\tb", vec!["a", "b", ""], false),
        (r"ENV a=b\ c", vec!["a", r"b\ c", "="], false),
        ("LABEL a=\"b=c\"", vec!["a", "\"b=c\"", "="], false),
        ("ARG a b=c d=", vec!["a", "b=c", "d="], false),
        ("ARG a='' b", vec!["a=''", "b"], false),
        ("EXPOSE 80  81", vec!["80", "81"], false),
        ("USER a b", vec!["a b"], false),
        ("HEALTHCHECK CMD  curl x", vec!["CMD", "curl x"], false),
        (r#"HEALTHCHECK CMD ["a","b"]"#, vec!["CMD", "a", "b"], true),
        ("HEALTHCHECK NONE", vec!["NONE"], false),
        ("ONBUILD RUN a b", vec!["RUN", "a b"], false),
        ("WEIRD a b", vec![], false),
        ("STOPSIGNAL", vec![], false),
    ] {
        let node = one(text);
        assert_eq!(node.args, args, "{text}");
        assert_eq!(node.json, json, "{text}");
        assert_eq!(node.original, text);
    }
}

#[test]
fn flags_stand_before_the_arguments() {
    for (text, flags, args) in [
        ("COPY --from=a b c", vec!["--from=a"], vec!["b", "c"]),
        ("COPY --a --b=\"x y\" c", vec!["--a", "--b=x y"], vec!["c"]),
        ("COPY --a=x\\ y c", vec!["--a=x y"], vec!["c"]),
        ("COPY --a -- --b c", vec!["--a"], vec!["--b", "c"]),
        ("COPY b --from=a", vec![], vec!["b", "--from=a"]),
        ("COPY --a=", vec!["--a="], vec![]),
        ("COPY -x y", vec![], vec!["-x", "y"]),
        ("COPY --a='q", vec!["--a=q"], vec![]),
    ] {
        let node = one(text);
        assert_eq!(
            (node.flags, node.args),
            (owned(&flags), owned(&args)),
            "{text}"
        );
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn lines_are_continued() {
    for (text, original, span) in [
        ("RUN a \\\n b", "RUN a  b", (1, 2)),
        ("RUN a \\  \n b", "RUN a  b", (1, 2)),
        ("RUN a\\\r\nb", "RUN ab", (1, 2)),
        ("RUN a \\\n# comment\n  # other\nb", "RUN a b", (1, 4)),
        ("RUN a \\\n\n\nb", "RUN a b", (1, 4)),
        ("RUN a \\\\\n", "RUN a \\\\", (1, 1)),
        ("\n\nRUN a", "RUN a", (3, 3)),
        ("  RUN a", "RUN a", (1, 1)),
        ("RUN a \\", "RUN a ", (1, 1)),
        ("\u{feff}RUN a", "RUN a", (1, 1)),
        ("# escape=`\nRUN a `\nb", "RUN a b", (2, 3)),
    ] {
        let node = one(text);
        assert_eq!(node.original, original, "{text:?}");
        assert_eq!((node.span.start, node.span.end), span, "{text:?}");
    }
    let dockerfile = parse(b"RUN a \\\n\nb\nRUN c").unwrap();
    assert_eq!(dockerfile.empty_continuations, [Span::line(3)]);
    assert_eq!(dockerfile.nodes.len(), 2);
}

#[test]
fn comments_belong_to_what_follows() {
    let text = "# a\n#b\nFROM x\n# c\n\nRUN y\n# d\n#\n# e\nRUN z";
    let dockerfile = parse(text.as_bytes()).unwrap();
    let comments: Vec<_> = dockerfile.nodes.into_iter().map(|n| n.comments).collect();
    // An empty line does not part them, an empty comment does.
    assert_eq!(comments, [owned(&["a", "b"]), owned(&["c"]), owned(&["e"])]);
}

#[test]
fn directives_end_with_the_first_other_line() {
    let text = b"# syntax = a/b:c \n#check=skip=all\n# other=1\n# escape=`\nFROM x";
    let dockerfile = parse(text).unwrap();
    assert_eq!(dockerfile.directive("syntax"), Some("a/b:c"));
    assert_eq!(dockerfile.directive("check"), Some("skip=all"));
    assert_eq!(dockerfile.escape, '\\');
    for (text, error) in [
        (
            "# escape=\\\n# escape=\\\nFROM x",
            "only one escape parser directive can be used",
        ),
        (
            "# escape=x\nFROM x",
            "invalid escape token 'x' does not match ` or \\",
        ),
    ] {
        assert_eq!(fails(text).0, error);
    }
}

#[test]
fn a_syntax_is_found_in_any_language() {
    for (text, expected) in [
        ("# syntax=a", Some(("a", 1))),
        ("#!/bin/x\n# syntax=a b", Some(("a b", 2))),
        ("\u{feff}#syntax=a", Some(("a", 1))),
        ("// syntax=a\n", Some(("a", 1))),
        (r#"{"syntax": "a"}"#, Some(("a", 0))),
        ("# comment\n# syntax=a", None),
        ("FROM a", None),
        ("", None),
    ] {
        let found = detect_syntax(text.as_bytes());
        let found = found.as_ref().map(|d| (d.value.as_str(), d.span.start));
        assert_eq!(found, expected, "{text:?}");
    }
    assert_eq!(directive("check", b"// check=a"), None);
}

#[test]
fn here_documents() {
    let node = one("RUN <<EOF\na\n\tb\nEOF\n");
    assert_eq!(node.heredocs[0].content, "a\n\tb\n");
    assert!(node.heredocs[0].expand);
    assert_eq!((node.span.start, node.span.end), (1, 4));

    let node = one("COPY <<-\"A\" <<B /x/\n\ta\n\tA\nb\nB\n");
    let [a, b] = node.heredocs.as_slice() else {
        panic!("two documents")
    };
    assert_eq!((a.name.as_str(), a.chomp, a.expand), ("A", true, false));
    assert_eq!(chomp(&a.content), "a\n");
    assert_eq!((b.name.as_str(), b.content.as_str()), ("B", "b\n"));

    let node = one("RUN cat 3<<X\r\na\r\nX\r\n");
    assert_eq!(node.heredocs[0].descriptor, 3);
    assert_eq!(node.heredocs[0].content, "a\r\n");

    let node = one("ONBUILD RUN <<EOF\na\nEOF");
    assert_eq!(node.heredocs.len(), 1);

    for text in [
        "RUN cat <<<a",
        "RUN echo '<<EOF'",
        "RUN a<<EOF",
        "CMD <<EOF",
        "ENV a=<<EOF",
    ] {
        assert_eq!(one(text).heredocs, [], "{text}");
    }
    assert_eq!(
        fails("FROM a\nRUN <<EOF\na\n"),
        ("unterminated heredoc".to_owned(), Some(2))
    );
}

#[test]
fn what_is_no_dockerfile_is_refused() {
    for (text, error, line) in [
        ("", "file with no instructions", 0),
        ("# only\n\n", "file with no instructions", 2),
        ("FROM a\nENV a", "ENV must have two arguments", 2),
        (
            "FROM a\nENV a=b c",
            "Syntax error - can't find = in \"c\". Must be of the form: name=value",
            2,
        ),
        (
            "CMD [\"a\", 1]",
            "when using JSON array syntax, arrays must be comprised of strings only",
            1,
        ),
    ] {
        assert_eq!(fails(text), (error.to_owned(), Some(line)), "{text:?}");
    }
    let long = format!("FROM a\nRUN {}", "x".repeat(MAX_LINE));
    assert_eq!(
        fails(&long).0,
        "dockerfile line greater than max allowed size of 65535"
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(dockerfile) = parse(&bytes) {
            let _ = crate::program(&dockerfile);
        }
        let _ = detect_syntax(&bytes);
    }

    #[test]
    fn no_text_of_its_own_words_makes_it_panic(
        text in "((FROM|RUN|COPY|ENV|ARG|ONBUILD|HEALTHCHECK|LABEL|CMD|ADD|SHELL)( |\t)(--[a-z]{1,8}=?|<<-?E|[a-z$='\"\\\\\\[\\],{}#%/:é]| |\\\\\n|\n#|\nE\n){0,12}\n){1,6}"
    ) {
        if let Ok(dockerfile) = parse(text.as_bytes()) {
            let lines = u32::try_from(text.lines().count()).unwrap();
            for node in &dockerfile.nodes {
                prop_assert!(node.span.start >= 1 && node.span.end <= lines);
                prop_assert!(node.span.start <= node.span.end);
            }
            let _ = crate::program(&dockerfile);
        }
    }
}
