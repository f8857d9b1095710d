//! A key that stands for this user's credentials without giving them away: a daemon learns from it
//! whether two sessions may share a token.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};

/// The names of BuildKit's client, which uses the same seeds.
const SEEDS: &str = ".token_seed";
const LOCK: &str = ".token_seed.lock";
/// Bytes of a new seed (BuildKit's value).
const SEED: usize = 16;
/// The largest file of seeds, in bytes.
const MOST: u64 = 1 << 20;

/// Random bytes for each registry, kept in the folder of the configuration file so that the next
/// build has the same ones; without a folder that can be written they last as long as this.
#[derive(Default)]
pub(crate) struct Seeds {
    dir: Option<PathBuf>,
    own: Mutex<BTreeMap<String, Vec<u8>>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    seed: String,
}

impl Seeds {
    pub(crate) fn in_dir(dir: Option<PathBuf>) -> Self {
        Self {
            dir,
            own: Mutex::default(),
        }
    }

    /// The seed for `host`. Blocks for the disk, and for another process that makes one.
    fn get(&self, host: &str) -> io::Result<Vec<u8>> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seed) = own.get(host) {
            return Ok(seed.clone());
        }
        let kept = self.dir.as_deref().map(|dir| kept(dir, host));
        let seed = match kept {
            Some(Ok(seed)) => seed,
            None | Some(Err(_)) => new()?,
        };
        own.insert(host.to_owned(), seed.clone());
        Ok(seed)
    }

    /// The key for `host`, by BuildKit's rule: of the salt alone when there are no credentials,
    /// so that all who have none are the same.
    pub(crate) fn key(
        &self,
        host: &str,
        salt: &[u8],
        with_credentials: bool,
    ) -> io::Result<Ed25519KeyPair> {
        let seed = match with_credentials {
            true => self.get(host)?,
            false => Vec::new(),
        };
        let sum = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, salt), &seed);
        Ed25519KeyPair::from_seed_unchecked(sum.as_ref())
            .map_err(|_| io::Error::other("a key cannot be made of a hash"))
    }
}

/// The public half.
pub(crate) fn public(key: &Ed25519KeyPair) -> Vec<u8> {
    key.public_key().as_ref().to_vec()
}

/// NaCl's `crypto_sign`: the signature, then what is signed.
pub(crate) fn sign(key: &Ed25519KeyPair, payload: &[u8]) -> Vec<u8> {
    let mut signed = key.sign(payload).as_ref().to_vec();
    signed.extend_from_slice(payload);
    signed
}

fn new() -> io::Result<Vec<u8>> {
    let mut seed = vec![0; SEED];
    let filled = SystemRandom::new().fill(&mut seed);
    filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(seed)
}

/// The seed that the folder keeps, made when there is none.
fn kept(dir: &Path, host: &str) -> io::Result<Vec<u8>> {
    let lock = File::options()
        .create(true)
        .append(true)
        .open(dir.join(LOCK))?;
    lock.lock()?;
    let path = dir.join(SEEDS);
    let mut text = Vec::new();
    match File::open(&path) {
        Ok(file) => drop(file.take(MOST).read_to_end(&mut text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // What cannot be read is made anew.
    let mut seeds: BTreeMap<String, Entry> = serde_json::from_slice(&text).unwrap_or_default();
    let known = seeds
        .get(host)
        .and_then(|entry| STANDARD.decode(&entry.seed).ok());
    if let Some(seed) = known.filter(|seed| !seed.is_empty()) {
        return Ok(seed);
    }
    let seed = new()?;
    let entry = Entry {
        seed: STANDARD.encode(&seed),
    };
    seeds.insert(host.to_owned(), entry);
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(&mut file, &seeds)?;
    file.flush()?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ED25519, UnparsedPublicKey};

    #[test]
    fn a_user_keeps_a_key_and_others_have_others() {
        let dir = tempfile::tempdir().unwrap();
        let key = |host: &str, salt: &[u8], credentials| {
            // Each time as another process would.
            let seeds = Seeds::in_dir(Some(dir.path().to_owned()));
            public(&seeds.key(host, salt, credentials).unwrap())
        };
        let own = key("a.example", b"salt", true);
        assert_eq!(own, key("a.example", b"salt", true));
        assert_ne!(own, key("b.example", b"salt", true));
        assert_ne!(own, key("a.example", b"other", true));
        let nobody = key("a.example", b"salt", false);
        assert_ne!(own, nobody);
        assert_eq!(nobody, key("b.example", b"salt", false));
        use std::os::unix::fs::PermissionsExt;
        let metadata = std::fs::metadata(dir.path().join(SEEDS)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o077, 0);
        // A folder that is not there keeps nothing, and all the same there is one key.
        let seeds = Seeds::in_dir(Some(dir.path().join("gone")));
        let first = public(&seeds.key("a", b"", true).unwrap());
        assert_eq!(first, public(&seeds.key("a", b"", true).unwrap()));
    }

    #[test]
    fn a_signature_is_that_of_the_key() {
        let key = Seeds::default().key("a", b"salt", true).unwrap();
        let signed = sign(&key, b"payload");
        let (signature, payload) = signed.split_at(64);
        assert_eq!(payload, b"payload");
        let public = UnparsedPublicKey::new(&ED25519, public(&key));
        public.verify(payload, signature).unwrap();
    }
}
