//! Places in the text.

/// A position: lines count from 1, characters from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The character in the line. Dockerfiles are located by whole lines: always 0.
    pub character: u32,
}

/// From one position to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// The first position.
    pub start: Position,
    /// The last position.
    pub end: Position,
}

/// The lines of an instruction, the first and the last one included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// The first line, from 1.
    pub start: u32,
    /// The last line.
    pub end: u32,
}

impl Span {
    /// One line.
    pub fn line(line: u32) -> Self {
        Self {
            start: line,
            end: line,
        }
    }

    /// One range for each line, as BuildKit's locations have them.
    pub fn ranges(self) -> Vec<Range> {
        (self.start..=self.end.max(self.start))
            .map(|line| {
                let position = Position { line, character: 0 };
                Range {
                    start: position,
                    end: position,
                }
            })
            .collect()
    }
}
