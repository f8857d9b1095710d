//! What a change is: something is built, something is different then, and something is said of a
//! step.

/// Something that is changed.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    /// In the Dockerfile.
    Replace(String, String),
    /// A file of the context.
    Write(&'static str, &'static str),
    /// The permissions of a file of the context.
    Mode(&'static str, u32),
    /// A file of the context.
    Remove(&'static str),
    /// An option of the command line.
    Flag(&'static str),
    /// The image `moving:TAG`.
    Push(&'static str, &'static str),
    /// The image `moving:every`, for several platforms.
    PushForPlatforms,
    /// The repository.
    Commit(&'static str),
    /// The file on the server.
    Serve(&'static str),
    /// All that is unused goes.
    Prune,
    /// All that was not used for a moment goes.
    PruneOld,
    /// All goes that takes space.
    PruneToFit,
}

/// One change: what is built first, what is different then, and what is said of a step.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) kind: &'static str,
    pub(super) bed: &'static str,
    /// What has to be there for the first build.
    pub(super) before: Vec<Edit>,
    pub(super) edits: Vec<Edit>,
    pub(super) step: &'static str,
    /// What is to be in the text: all of it.
    pub(super) causes: Vec<String>,
}

pub(super) fn change(kind: &'static str, bed: &'static str) -> Change {
    Change {
        kind,
        bed,
        before: Vec::new(),
        edits: Vec::new(),
        step: "",
        causes: Vec::new(),
    }
}

impl Change {
    pub(super) fn before(mut self, edit: Edit) -> Self {
        self.before.push(edit);
        self
    }

    /// In the Dockerfile, before the first build.
    pub(super) fn with(self, old: &str, new: &str) -> Self {
        self.before(Edit::Replace(old.to_owned(), new.to_owned()))
    }

    pub(super) fn edit(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }

    pub(super) fn replace(self, old: &str, new: &str) -> Self {
        self.edit(Edit::Replace(old.to_owned(), new.to_owned()))
    }

    pub(super) fn says(mut self, step: &'static str, causes: &[&str]) -> Self {
        self.step = step;
        self.causes = causes.iter().map(|&cause| cause.to_owned()).collect();
        self
    }
}
