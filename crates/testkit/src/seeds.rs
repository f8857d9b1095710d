//! The inputs that fuzzing begins with, as ordinary tests take them.

use std::path::Path;

/// Shows each seed of the fuzz target `target` to `property`, which panics when it does not
/// hold. Inputs that once broke it are among them.
#[track_caller]
pub fn seeds(target: &str, property: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(target);
    let list = std::fs::read_dir(&folder);
    let list = list.unwrap_or_else(|error| panic!("read {}: {error}", folder.display()));
    let mut count = 0;
    for entry in list {
        let path = entry.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        // Shown with the panic, if there is one.
        eprintln!("{}", path.display());
        property(&seed);
        // And what a broken line makes of it.
        property(&seed[..seed.len() / 2]);
        count += 1;
    }
    assert!(count > 0, "no seeds in {}", folder.display());
}
