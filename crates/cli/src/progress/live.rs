//! Frames on a terminal, each over the one before.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use console::{Term, measure_text_width};
use cooper_proto::control::StatusResponse;

use super::frame::{self, Size};
use super::palette::Palette;
use super::trace::{Nanos, Trace, nanos};
use super::{Display, write_failures};

/// The size of a terminal that does not say it (BuildKit's values).
const UNKNOWN: Size = Size {
    width: 80,
    height: 10,
};
/// Lines of a running step's output, unless `BUILDKIT_TTY_LOG_LINES` says it (BuildKit's value).
const OUTPUT: usize = 6;

/// Shows a trace on a terminal.
pub(super) struct Live<W> {
    trace: Trace,
    begun: Instant,
    /// How far this machine's clock is ahead of the daemon's.
    ahead: Option<Nanos>,
    out: W,
    size: fn() -> Option<Size>,
    palette: Palette,
    output: usize,
    /// Columns of the lines that are on the terminal.
    drawn: Vec<usize>,
}

/// The size of the terminal at standard error.
pub(super) fn size_of_stderr() -> Option<Size> {
    let (height, width) = Term::stderr().size_checked()?;
    Some(Size {
        width: width.into(),
        height: height.into(),
    })
}

impl<W: Write> Live<W> {
    pub(super) fn new(out: W, size: fn() -> Option<Size>) -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let output = variable("BUILDKIT_TTY_LOG_LINES").and_then(|lines| lines.parse().ok());
        Self {
            trace: Trace::default(),
            begun: Instant::now(),
            ahead: None,
            out,
            size,
            palette: Palette::from_env(variable),
            output: output.unwrap_or(OUTPUT),
            drawn: Vec::new(),
        }
    }

    fn draw(&mut self, all: bool) -> std::io::Result<()> {
        let size = (self.size)().filter(|size| size.width > 0 && size.height > 0);
        let size = size.unwrap_or(UNKNOWN);
        let now = now() - self.ahead.unwrap_or(0);
        let elapsed = self.begun.elapsed();
        let lines = frame::lines(&self.trace, elapsed, now, size, self.output, all);
        // In a window that has become narrower a line takes several rows.
        let above: usize = self
            .drawn
            .iter()
            .map(|columns| columns.div_ceil(size.width).max(1))
            .sum();
        // The cursor is away only while a frame is written: whatever ends the program, it is seen.
        let mut text = String::from("\x1b[?25l\r");
        if above > 0 {
            let _ = write!(text, "\x1b[{above}A");
        }
        for line in &lines {
            text.push_str(&self.palette.paint(&line.text, line.look));
            text.push_str("\x1b[K\r\n");
        }
        text.push_str("\x1b[J\x1b[?25h");
        self.out.write_all(text.as_bytes())?;
        self.drawn = lines
            .iter()
            .map(|line| measure_text_width(&line.text))
            .collect();
        self.out.flush()
    }
}

impl<W: Write> Display for Live<W> {
    fn update(&mut self, response: StatusResponse) {
        if self.ahead.is_none() {
            let mut started = response
                .vertexes
                .iter()
                .filter_map(|it| it.started.as_ref());
            self.ahead = started.next().map(|started| now() - nanos(started));
        }
        self.trace.update(response);
        self.trace.updates.clear();
    }

    fn refresh(&mut self) {
        // A terminal that is gone is no reason to stop the build.
        let _ = self.draw(false);
    }

    fn done(&mut self) {
        let _ = self.draw(true);
        let _ = write_failures(&self.trace, &mut self.out);
    }
}

fn now() -> Nanos {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as Nanos)
}
