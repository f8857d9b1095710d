//! What holds for whatever a server may answer and a client may ask for.

pub use crate::git::fuzz::repository;
pub use crate::http::fuzz::download;
pub use crate::image::fuzz::manifest;

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_hold() {
        cooper_testkit::seeds("download", super::download);
        cooper_testkit::seeds("manifest", super::manifest);
        cooper_testkit::seeds("repository", super::repository);
    }
}
