//! The worker's id: random, made once and kept.

use std::io;
use std::path::Path;

/// The id in the file `path`, made when there is none.
pub(crate) fn persistent(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let id = base36(uuid::Uuid::new_v4().as_u128());
    // Under another name first: a process that dies here leaves no half of an id.
    let half = path.with_extension("new");
    std::fs::write(&half, &id)?;
    std::fs::rename(&half, path)?;
    Ok(id)
}

/// 25 characters of base 36, as BuildKit's ids are.
fn base36(mut number: u128) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = [b'0'; 25];
    for place in text.iter_mut().rev() {
        let digit = usize::try_from(number % 36).expect("a number below 36 fits");
        *place = DIGITS[digit];
        number /= 36;
    }
    text.iter().map(|digit| char::from(*digit)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("workerid");
        let id = persistent(&path).unwrap();
        assert_eq!(id.len(), 25);
        assert_eq!(persistent(&path).unwrap(), id);
        std::fs::write(&path, "\n").unwrap();
        assert_ne!(persistent(&path).unwrap(), id, "an empty file has no id");
    }
}
