#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

fn env() -> BTreeMap<String, String> {
    [
        ("A", "abc"),
        ("E", ""),
        ("PATH", "/usr/bin:/bin"),
        ("V", "1.2.3"),
        ("S", "a b"),
        ("STAR", "a*c"),
        ("X_1", "x"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

#[test]
fn words_are_expanded() {
    let lex = Lex::new('\\');
    for (word, expected) in [
        ("hello", "hello"),
        ("he'll'o", "hello"),
        ("he\\'llo", "he'llo"),
        ("\"a b\"c", "a bc"),
        ("\\$A", "$A"),
        ("a\\\\b", "a\\b"),
        ("a\\", "a"),
        ("\"a\\b\\\"\\$A\"", "a\\b\"$A"),
        ("'$A'", "$A"),
        ("$A", "abc"),
        ("${A}d", "abcd"),
        ("$A$X_1", "abcx"),
        ("$NONE.", "."),
        ("$", "$"),
        ("$ a", "$ a"),
        ("$1a", "a"),
        ("$@", ""),
        ("\"$S\"", "a b"),
        ("${NONE-d}", "d"),
        ("${E-d}", ""),
        ("${E:-d}", "d"),
        ("${A:-d}", "abc"),
        ("${NONE:-$A}", "abc"),
        ("${NONE:-${E:-x}}", "x"),
        ("${NONE:-\"a}\"}", "a}"),
        ("${A+y}", "y"),
        ("${E+y}", "y"),
        ("${E:+y}", ""),
        ("${NONE+y}", ""),
        ("${A:?no}", "abc"),
        ("${V#*.}", "2.3"),
        ("${V##*.}", "3"),
        ("${V%.*}", "1.2"),
        ("${V%%.*}", "1"),
        ("${V#?.}", "2.3"),
        ("${V#x}", "1.2.3"),
        ("${STAR#a\\*}", "c"),
        ("${PATH/bin/sbin}", "/usr/sbin:/bin"),
        ("${PATH//bin/sbin}", "/usr/sbin:/sbin"),
        ("${PATH//\\/bin/}", "/usr:"),
        ("${V/.*/x}", "1x"),
        ("${V//./}", "123"),
        ("${STAR/\\*/-}", "a-c"),
        ("${NONE%x}", ""),
        ("é$A", "éabc"),
    ] {
        let found = lex.expand(word, &env());
        assert_eq!(found.unwrap().text, expected, "{word}");
    }
}

#[test]
fn what_cannot_be_expanded_says_why() {
    let lex = Lex::new('\\');
    for (word, reason) in [
        ("${", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${{A}", "syntax error: bad substitution"),
        ("${:A}", "syntax error: bad substitution"),
        ("${A", "unsupported modifier (\u{fffd}) in substitution"),
        ("${A:", "unsupported modifier (:\u{fffd}) in substitution"),
        ("${A:-x", "syntax error: missing '}'"),
        ("${A!x}", "unsupported modifier (!) in substitution"),
        ("${A:=x}", "unsupported modifier (:=) in substitution"),
        ("${NONE?}", "NONE: is not allowed to be unset"),
        ("${NONE:?gone}", "NONE: gone"),
        ("${E:?}", "E: is not allowed to be empty"),
        ("${A/x}", "syntax error: missing '/' in ${}"),
        ("${A/x/y", "syntax error: missing '}'"),
        (
            "${A#\\a}",
            "invalid pattern (\\a) in substitution: invalid escape '\\a'",
        ),
        (
            "'a",
            "unexpected end of statement while looking for matching single-quote",
        ),
        (
            "\"a",
            "unexpected end of statement while looking for matching double-quote",
        ),
    ] {
        let error = lex.expand(word, &env()).unwrap_err();
        assert_eq!(error.reason, reason, "{word}");
        assert_eq!(
            error.to_string(),
            format!("failed to process {word:?}: {reason}")
        );
    }
    let large = BTreeMap::from([("L".to_owned(), "x".repeat(1 << 16))]);
    let long = lex.expand(&"$L".repeat(17), &large).unwrap_err();
    assert_eq!(long.reason, "the expansion is too long");
    let many = BTreeMap::from([("L".to_owned(), "/".repeat(1 << 10))]);
    let replaced = format!("${{L//\\//{}}}", "y".repeat(1 << 13));
    assert!(lex.expand(&replaced, &many).is_err());
    let deep = "${A:+".repeat(10_000);
    assert!(lex.expand(&deep, &env()).is_err());
}

#[test]
fn words_are_split_where_nothing_protects_white_space() {
    let lex = Lex::new('\\');
    for (word, words) in [
        ("a b  c", vec!["a", "b", "c"]),
        ("'a b' c", vec!["a b", "c"]),
        ("a\\ b c", vec!["a b", "c"]),
        ("$S c", vec!["a", "b", "c"]),
        ("\"$S\" c", vec!["a b", "c"]),
        ("  ", vec![]),
    ] {
        assert_eq!(lex.words(word, &env()).unwrap(), words, "{word}");
    }
}

#[test]
fn options_keep_what_is_written() {
    let mut lex = Lex::new('\\');
    lex.raw_quotes = true;
    lex.skip_unset_env = true;
    for (word, expected) in [
        ("'a' \"$A\"", "'a' \"abc\""),
        (
            "$NONE ${NONE} ${NONE:-x} ${NONE#y}",
            "$NONE ${NONE} ${NONE:-x} ${NONE#y}",
        ),
        ("${NONE//a/b}", "${NONE//a/b}"),
    ] {
        assert_eq!(lex.expand(word, &env()).unwrap().text, expected, "{word}");
    }
    let mut lex = Lex::new('\\');
    lex.skip_quotes = true;
    assert_eq!(lex.expand("it's $A\"", &env()).unwrap().text, "it's abc\"");
    let mut lex = Lex::new('`');
    assert_eq!(lex.expand("a\\b`$A", &env()).unwrap().text, "a\\b$A");
    lex.raw_escapes = true;
    assert_eq!(lex.expand("a`b", &env()).unwrap().text, "a`b");
}

#[test]
fn variables_are_reported() {
    let found = Lex::new('\\').expand("$A ${B:-$C} $A", &env()).unwrap();
    assert_eq!(found.matched, BTreeSet::from(["A".to_owned()]));
    assert_eq!(
        found.unmatched,
        BTreeSet::from(["B".to_owned(), "C".to_owned()])
    );
}

proptest! {
    #[test]
    fn no_word_makes_it_panic(word in "[a-c$\\{\\}:#%/?*+\\-'\"\\\\ é0-9]{0,40}") {
        let _ = Lex::new('\\').expand(&word, &env());
    }

    #[test]
    fn a_word_without_meaning_is_itself(word in "[a-z0-9é.:/-]{0,40}") {
        prop_assert_eq!(Lex::new('\\').expand(&word, &env()).unwrap().text, word);
    }
}
