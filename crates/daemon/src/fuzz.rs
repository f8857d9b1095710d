//! What holds for whatever a configuration may say.

use crate::Config;

/// The file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::parse(text) {
        Ok(config) => {
            let _ = config.without_effect();
            let again = Config::parse(text).expect("it was read");
            assert_eq!(format!("{again:?}"), format!("{config:?}"));
        }
        Err(error) => assert!(!error.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_hold() {
        cooper_testkit::seeds("config", super::config);
    }
}
