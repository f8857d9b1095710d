//! Names of refs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::CacheError;

/// Characters of an id, at most: it is part of keys and names of snapshots.
const LONGEST: usize = 64;
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Names a ref: 25 letters and digits, as BuildKit's ids are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RefId(String);

impl RefId {
    /// A new one, by chance.
    pub(crate) fn random() -> Self {
        let mut rest = uuid::Uuid::new_v4().as_u128();
        let mut text = [b'0'; 25];
        for digit in text.iter_mut().rev() {
            *digit = DIGITS[(rest % 36) as usize];
            rest /= 36;
        }
        Self(text.iter().map(|digit| char::from(*digit)).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for RefId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for RefId {
    type Err = CacheError;

    /// Takes the text of an id that was stored; anything that cannot be one is refused.
    fn from_str(text: &str) -> Result<Self, CacheError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if text.is_empty() || text.len() > LONGEST || !text.bytes().all(plain) {
            return Err(CacheError::Id {
                text: text.chars().take(LONGEST).collect(),
            });
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_text_and_never_twice_the_same() {
        let (one, other) = (RefId::random(), RefId::random());
        assert_ne!(one, other);
        assert_eq!(one.as_str().len(), 25);
        assert_eq!(one.as_str().parse::<RefId>().unwrap(), one);
        for bad in ["", "A", "a/b", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<RefId>().is_err(), "{bad:?}");
        }
    }
}
