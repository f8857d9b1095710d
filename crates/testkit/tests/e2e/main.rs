//! End-to-end cases: what a user does, with the programs that a user has.
#![allow(clippy::unwrap_used, missing_docs)]

mod registry;
