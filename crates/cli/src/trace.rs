//! What the program says of its own work: messages for a person, and a trace for a tool.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use tracing_chrome::{ChromeLayerBuilder, FlushGuard, TraceStyle};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt, registry};

/// Begins to write messages to standard error as `COOPER_LOG` asks, and with a `file` the spans
/// of this house's crates into it, in the trace event format. What is returned writes the rest
/// when it is dropped.
pub(crate) fn begin(file: Option<&Path>) -> Result<Option<FlushGuard>> {
    let asked = EnvFilter::try_from_env("COOPER_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    let messages = fmt::layer().with_writer(std::io::stderr).with_filter(asked);
    let (spans, guard) = match file {
        Some(path) => {
            let file = File::create(path)
                .with_context(|| format!("cannot make the trace {}", path.display()))?;
            // Steps run side by side on any thread: each has a line of its own.
            let (layer, guard) = ChromeLayerBuilder::new()
                .writer(BufWriter::new(file))
                .trace_style(TraceStyle::Async)
                .include_args(true)
                .build();
            let ours = filter_fn(|data| data.is_span() && data.target().starts_with("cooper"));
            (Some(layer.with_filter(ours)), Some(guard))
        }
        None => (None, None),
    };
    registry().with(messages).with(spans).init();
    Ok(guard)
}
