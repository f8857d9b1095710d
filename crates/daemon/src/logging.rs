//! The daemon's own log, on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::{Config, DaemonError};

/// Begins to log as the configuration says; the environment variable `RUST_LOG` says it more
/// precisely.
pub fn init(config: &Config) -> Result<(), DaemonError> {
    let level = level(config)?;
    // Libraries say much that helps nobody here.
    let quiet = [
        "h2",
        "hyper",
        "hyper_util",
        "rustls",
        "reqwest",
        "tower",
        "tonic",
    ];
    let mut filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy();
    if level != LevelFilter::TRACE {
        for name in quiet {
            if let Ok(directive) = format!("{name}=warn").parse() {
                filter = filter.add_directive(directive);
            }
        }
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second one in this process changes nothing.
    let _ = match config.log.format.as_str() {
        "json" => builder.json().try_init(),
        "text" | "" => builder.with_ansi(false).try_init(),
        other => {
            return Err(DaemonError::Flag {
                flag: "log-format",
                value: other.to_owned(),
                reason: "text and json are known".to_owned(),
            });
        }
    };
    Ok(())
}

fn level(config: &Config) -> Result<LevelFilter, DaemonError> {
    Ok(match config.log.level.as_deref() {
        Some("trace") => LevelFilter::TRACE,
        Some("debug") => LevelFilter::DEBUG,
        Some("info") => LevelFilter::INFO,
        Some("warn" | "warning") => LevelFilter::WARN,
        Some("error" | "fatal" | "panic") => LevelFilter::ERROR,
        Some(other) => {
            return Err(DaemonError::Flag {
                flag: "log-level",
                value: other.to_owned(),
                reason: "error, warn, info, debug and trace are known".to_owned(),
            });
        }
        None if config.trace => LevelFilter::TRACE,
        None if config.debug => LevelFilter::DEBUG,
        None => LevelFilter::INFO,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_level_by_name_goes_over_debug() {
        let mut config = Config {
            debug: true,
            ..Config::default()
        };
        assert_eq!(level(&config).unwrap(), LevelFilter::DEBUG);
        config.log.level = Some("warn".into());
        assert_eq!(level(&config).unwrap(), LevelFilter::WARN);
        config.log.level = Some("loud".into());
        assert!(level(&config).is_err());
    }
}
