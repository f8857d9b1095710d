//! Which rows of behaviour have an end-to-end case.
//!
//! The rows stand in `docs/coverage.md`. A case is a function that is run as a test: one in a
//! file or module that belongs to the program of the end-to-end cases, not under a condition, not
//! ignored and not empty. The rows that it tests stand at the beginning of its name.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::{Attribute, Item, ItemFn};

use crate::workspace;

/// The table of rows.
const TABLE: &str = "docs/coverage.md";
/// The root of the program of end-to-end cases.
const CASES: &str = "crates/testkit/tests/e2e/main.rs";

/// Prints the cases of each row; fails when a row has none.
pub(crate) fn run() -> Result<()> {
    let coverage = Coverage::of_the_workspace()?;
    print!("{}", coverage.report());
    let without = coverage.without();
    if !without.is_empty() {
        bail!(
            "{} of {} rows have no case: {}",
            without.len(),
            coverage.rows.len(),
            without.join(", ")
        );
    }
    Ok(())
}

/// The rows and the cases.
struct Coverage {
    rows: Vec<Row>,
    /// What is named as left out, and why.
    left_out: Vec<(String, String)>,
    /// The cases that name no row of the table.
    others: usize,
}

struct Row {
    id: String,
    title: String,
    cases: Vec<String>,
}

impl Coverage {
    fn of_the_workspace() -> Result<Self> {
        let root = workspace::root();
        let table = root.join(TABLE);
        let text =
            std::fs::read_to_string(&table).with_context(|| format!("read {}", table.display()))?;
        Self::new(&text, &cases(&root.join(CASES))?)
    }

    fn new(table: &str, cases: &[String]) -> Result<Self> {
        let (mut rows, mut left_out) = (Vec::<Row>::new(), Vec::new());
        let mut part = "";
        for line in table.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                part = heading;
            }
            let cells = line
                .strip_prefix("| ")
                .and_then(|line| line.strip_suffix(" |"));
            let Some((id, title)) = cells.and_then(|cells| cells.split_once(" | ")) else {
                continue;
            };
            let (id, title) = (id.to_owned(), title.to_owned());
            match part {
                _ if id == "Id" => {}
                "Rows" if prefix(&id).is_none() => bail!("{TABLE}: {id} is not an id"),
                "Rows" if rows.iter().any(|row| row.id == id) => bail!("{TABLE}: {id} is twice"),
                "Rows" => rows.push(Row {
                    id,
                    title,
                    cases: Vec::new(),
                }),
                "Left out" => left_out.push((id, title)),
                _ => bail!("{TABLE}: {id} stands under no heading that is known"),
            }
        }
        if rows.is_empty() {
            bail!("{TABLE} has no rows");
        }
        let mut by_id: BTreeMap<String, usize> = BTreeMap::new();
        for (index, row) in rows.iter().enumerate() {
            by_id.insert(row.id.clone(), index);
        }
        let mut others = 0;
        for case in cases {
            let found = ids(case).into_iter().filter_map(|id| by_id.get(&id));
            let found: Vec<_> = found.collect();
            others += usize::from(found.is_empty());
            for index in found {
                rows[*index].cases.push(case.clone());
            }
        }
        Ok(Self {
            rows,
            left_out,
            others,
        })
    }

    fn without(&self) -> Vec<&str> {
        let without = self.rows.iter().filter(|row| row.cases.is_empty());
        without.map(|row| row.id.as_str()).collect()
    }

    fn report(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let _ = writeln!(text, "{}  {}", row.id, row.title);
            for case in &row.cases {
                let _ = writeln!(text, "    {case}");
            }
            if row.cases.is_empty() {
                text.push_str("    no case\n");
            }
        }
        for (id, why) in &self.left_out {
            let _ = writeln!(text, "{id}  left out: {why}");
        }
        let with = self.rows.len() - self.without().len();
        let _ = writeln!(
            text,
            "coverage: {with} of {} rows have a case; {} cases name no row of these",
            self.rows.len(),
            self.others
        );
        text
    }
}

/// `EXP-03` as a name begins with it: `exp03`.
fn prefix(id: &str) -> Option<String> {
    let (letters, digits) = id.split_once('-')?;
    let right = !letters.is_empty()
        && letters.bytes().all(|byte| byte.is_ascii_uppercase())
        && digits.len() == 2
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| letters.to_ascii_lowercase() + digits)
}

/// The ids at the beginning of the last part of a case's path.
fn ids(case: &str) -> Vec<String> {
    let name = case.rsplit("::").next().unwrap_or(case);
    let words = name.split('_').map_while(|word| {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
        let id = format!(
            "{}-{}",
            letters.to_ascii_uppercase(),
            &word[letters.len()..]
        );
        (prefix(&id)? == word).then_some(id)
    });
    words.collect()
}

/// The paths of all cases of the program whose root is `main`, in the order of the files.
fn cases(main: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let folder = main.parent().context("a file is in a folder")?;
    file(main, folder, "", &mut found)?;
    Ok(found)
}

/// Reads one file; the files of its modules are in `folder`.
fn file(path: &Path, folder: &Path, module: &str, found: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let parsed = syn::parse_file(&text).with_context(|| format!("parse {}", path.display()))?;
    items(&parsed.items, folder, module, found)
}

fn items(all: &[Item], folder: &Path, module: &str, found: &mut Vec<String>) -> Result<()> {
    for item in all {
        match item {
            Item::Fn(function) if is_case(function) => {
                found.push(format!("{module}{}", function.sig.ident));
            }
            Item::Mod(inner) if !conditional(&inner.attrs) => {
                let name = inner.ident.to_string();
                let module = format!("{module}{name}::");
                let below = folder.join(&name);
                match &inner.content {
                    Some((_, content)) => items(content, &below, &module, found)?,
                    None => file(&source(folder, &name)?, &below, &module, found)?,
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The file of a module: one of the two places that the language has for it.
fn source(folder: &Path, name: &str) -> Result<PathBuf> {
    let places = [
        folder.join(format!("{name}.rs")),
        folder.join(name).join("mod.rs"),
    ];
    let place = places.into_iter().find(|place| place.is_file());
    place.with_context(|| format!("no file for module {name} in {}", folder.display()))
}

fn is_case(function: &ItemFn) -> bool {
    let named = |attribute: &Attribute, name: &str| {
        let last = attribute.path().segments.last();
        last.is_some_and(|segment| segment.ident == name)
    };
    let has = |name: &str| {
        function
            .attrs
            .iter()
            .any(|attribute| named(attribute, name))
    };
    has("test")
        && !has("ignore")
        && !conditional(&function.attrs)
        && !function.block.stmts.is_empty()
}

/// Whether something has to be the case for this to be compiled.
fn conditional(attributes: &[Attribute]) -> bool {
    let conditions = ["cfg", "cfg_attr"];
    attributes.iter().any(|attribute| {
        conditions
            .iter()
            .any(|name| attribute.path().is_ident(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &str) -> String {
        format!(
            "## Rows\n\n| Id | What |\n|---|---|\n{rows}\n## Left out\n\n| Id | Why |\n| FE-02 | x |\n"
        )
    }

    #[test]
    fn a_name_says_its_rows_at_its_beginning() {
        assert_eq!(ids("exports::exp03_a_tar"), ["EXP-03"]);
        assert_eq!(ids("sol03_sol10_the_same_df14"), ["SOL-03", "SOL-10"]);
        for other in [
            "a_exp03", "exp3_x", "exp003_x", "exp_03", "03_exp", "", "é1_x",
        ] {
            assert_eq!(ids(other), Vec::<String>::new(), "{other}");
        }
    }

    #[test]
    fn a_row_without_a_case_is_told() {
        let cases = ["m::exp03_x", "m::exp99_y", "z"].map(str::to_owned);
        let coverage = Coverage::new(&table("| EXP-03 | a |\n| EXP-04 | b |\n"), &cases).unwrap();
        assert_eq!(coverage.without(), ["EXP-04"]);
        assert_eq!(coverage.others, 2);
        let report = coverage.report();
        for part in [
            "EXP-03  a\n    m::exp03_x\n",
            "EXP-04  b\n    no case\n",
            "FE-02  left out: x",
        ] {
            assert!(report.contains(part), "{report}");
        }
    }

    #[test]
    fn a_table_that_makes_no_sense_is_refused() {
        for rows in ["", "| EXP-3 | a |\n", "| EXP-03 | a |\n| EXP-03 | b |\n"] {
            assert!(Coverage::new(&table(rows), &[]).is_err(), "{rows}");
        }
        assert!(Coverage::new("| EXP-03 | a |\n", &[]).is_err());
    }

    #[test]
    fn only_what_is_run_is_a_case() {
        let text = r##"
            #[test] fn exp01_yes() { x() }
            #[tokio::test] async fn exp02_yes() { x() }
            #[test] fn exp03_empty() {}
            #[test] #[ignore] fn exp04_ignored() { x() }
            #[cfg(windows)] #[test] fn exp05_elsewhere() { x() }
            fn exp06_called() { x() }
            // #[test] fn exp07_comment() { x() }
            const TEXT: &str = "#[test] fn exp08_text() { x() }";
            mod inner { #[test] fn exp09_yes() { x() } fn exp10_called() { x() } }
            #[cfg(any())] mod never { #[test] fn exp11_never() { x() } }
        "##;
        let mut found = Vec::new();
        let parsed = syn::parse_file(text).unwrap();
        items(&parsed.items, Path::new("/"), "", &mut found).unwrap();
        assert_eq!(found, ["exp01_yes", "exp02_yes", "inner::exp09_yes"]);
    }
}
