//! Colours, by the variables that BuildKit's clients read.

use super::frame::Look;

/// The codes (SGR) of the looks that have a colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Palette {
    run: Option<String>,
    cancel: Option<String>,
    warning: Option<String>,
    error: Option<String>,
    faint: Option<String>,
}

impl Palette {
    /// No colours with a `NO_COLOR` that is not empty (no-color.org); else BuildKit's, changed by
    /// `BUILDKIT_COLORS` (`run=green:error=255,0,0`). What makes no sense there is passed over.
    pub(super) fn from_env(variable: impl Fn(&str) -> Option<String>) -> Self {
        let code = |code: &str| Some(code.to_owned());
        if variable("NO_COLOR").is_some_and(|value| !value.is_empty()) {
            return Self {
                run: None,
                cancel: None,
                warning: None,
                error: None,
                faint: None,
            };
        }
        let mut palette = Self {
            run: code("34"),
            cancel: code("33"),
            warning: code("33"),
            error: code("31"),
            faint: code("2"),
        };
        let changes = variable("BUILDKIT_COLORS").unwrap_or_default();
        for change in changes.split(':') {
            let Some((name, value)) = change.split_once('=') else {
                continue;
            };
            let place = match name.to_lowercase().as_str() {
                "run" => &mut palette.run,
                "cancel" => &mut palette.cancel,
                "warning" => &mut palette.warning,
                "error" => &mut palette.error,
                _ => continue,
            };
            if let Some(code) = parse(value) {
                *place = Some(code);
            }
        }
        palette
    }

    /// The text in the colour of the look.
    pub(super) fn paint(&self, text: &str, look: Look) -> String {
        let code = match look {
            Look::Plain => &None,
            Look::Done => &self.run,
            Look::Cancelled => &self.cancel,
            Look::Failed => &self.error,
            Look::Warning => &self.warning,
            Look::Output => &self.faint,
        };
        match code {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

/// A colour by its name, or as `RED,GREEN,BLUE`.
fn parse(value: &str) -> Option<String> {
    const NAMES: [&str; 8] = [
        "black", "red", "green", "yellow", "blue", "magenta", "cyan", "white",
    ];
    let value = value.to_lowercase();
    if value == "default" {
        return Some("39".to_owned());
    }
    let (name, first) = match value.strip_prefix("light-") {
        Some(name) => (name, 90),
        None => (value.as_str(), 30),
    };
    if let Some(place) = NAMES.iter().position(|known| *known == name) {
        return Some((first + place).to_string());
    }
    let parts: Result<Vec<u8>, _> = value.split(',').map(str::parse).collect();
    match parts.as_deref() {
        Ok([red, green, blue]) => Some(format!("38;2;{red};{green};{blue}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn palette(variables: &[(&str, &str)]) -> Palette {
        Palette::from_env(|name| {
            let mut found = variables.iter().filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn colours_are_those_of_the_variables() {
        let usual = palette(&[("NO_COLOR", "")]);
        assert_eq!(usual.paint("x", Look::Done), "\x1b[34mx\x1b[0m");
        assert_eq!(usual.paint("x", Look::Plain), "x");
        let changes = "run=light-green:error=1,2,3:cancel=no-colour:other:warning=Cyan";
        let own = palette(&[("BUILDKIT_COLORS", changes)]);
        assert_eq!(own.paint("x", Look::Done), "\x1b[92mx\x1b[0m");
        assert_eq!(own.paint("x", Look::Failed), "\x1b[38;2;1;2;3mx\x1b[0m");
        assert_eq!(own.paint("x", Look::Cancelled), "\x1b[33mx\x1b[0m");
        assert_eq!(own.paint("x", Look::Warning), "\x1b[36mx\x1b[0m");
    }

    #[test]
    fn no_color_means_none() {
        let none = palette(&[("NO_COLOR", "1"), ("BUILDKIT_COLORS", "run=red")]);
        for look in [Look::Done, Look::Failed, Look::Output, Look::Warning] {
            assert_eq!(none.paint("x", look), "x");
        }
    }
}
