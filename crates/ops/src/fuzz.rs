//! What holds for whatever a build may bring.

pub use crate::file::fuzz::add;
