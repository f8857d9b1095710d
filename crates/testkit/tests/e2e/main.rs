//! End-to-end cases: what a user does, with the programs that a user has.
//!
//! They run one at a time (`cargo xtask test-e2e`), because each ends with a look at the whole
//! machine for what it left behind.
#![allow(clippy::unwrap_used, missing_docs)]

mod registry;
