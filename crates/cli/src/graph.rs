//! A build graph on standard input, as BuildKit's libraries write one
//! (`llb.WriteTo`, `buildctl debug dump-llb` shows it).

use std::io::Read;

use anyhow::{Context as _, Result, bail};
use cooper_llb::{Op, digest_of};
use cooper_proto::{MAX_MESSAGE_SIZE, pb};
use prost::Message;

/// Reads a graph; with `no_cache` every step of it is to be run whatever the cache holds.
///
/// # Errors
/// It is no graph, it is empty, or it is larger than a request may be.
pub(crate) fn read(from: &mut dyn Read, no_cache: bool) -> Result<pb::Definition> {
    let mut bytes = Vec::new();
    let most = MAX_MESSAGE_SIZE as u64;
    let mut limited = from.take(most + 1);
    limited
        .read_to_end(&mut bytes)
        .context("failed to read the LLB definition")?;
    if bytes.len() as u64 > most {
        bail!("the LLB definition on standard input is larger than {most} bytes");
    }
    let mut definition = pb::Definition::decode(&*bytes).context("failed to parse input")?;
    if definition.def.is_empty() {
        bail!("empty definition sent to build. Specify --frontend instead?");
    }
    if no_cache {
        for operation in &definition.def {
            let digest = digest_of(operation).to_string();
            definition.metadata.entry(digest).or_default().ignore_cache = true;
        }
    }
    Ok(definition)
}

/// Every directory that the graph asks for is offered.
///
/// # Errors
/// One is not, or a part of the graph is no operation.
pub(crate) fn check(definition: &pb::Definition, offered: impl Fn(&str) -> bool) -> Result<()> {
    for bytes in &definition.def {
        let operation = pb::Op::decode(&**bytes).context("failed to parse llb proto op")?;
        if let Some(Op::Source(source)) = operation.op
            && let Some(name) = source.identifier.strip_prefix("local://")
            && !offered(name)
        {
            bail!("local directory {name} not enabled: it needs --local {name}=DIR");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_llb::build::{Constraints, Local, MarshalOptions, State};

    fn graph() -> Vec<u8> {
        let state = State::local("src", Local::default(), Constraints::default());
        state.marshal(&MarshalOptions::default()).encode_to_vec()
    }

    #[test]
    fn a_graph_is_read_and_its_directories_are_known() {
        let definition = read(&mut &*graph(), false).unwrap();
        assert!(definition.metadata.values().all(|it| !it.ignore_cache));
        assert!(check(&definition, |name| name == "src").is_ok());
        let error = check(&definition, |_| false).unwrap_err().to_string();
        assert!(error.contains("--local src=DIR"), "{error}");
        let definition = read(&mut &*graph(), true).unwrap();
        for operation in &definition.def {
            let digest = digest_of(operation).to_string();
            assert!(definition.metadata[&digest].ignore_cache);
        }
    }

    #[test]
    fn what_is_no_graph_is_refused() {
        let error = |bytes: &[u8]| read(&mut &*bytes, false).unwrap_err().to_string();
        assert!(error(b"FROM scratch\n").contains("failed to parse input"));
        assert!(error(b"").contains("empty definition"));
        let large = vec![0; MAX_MESSAGE_SIZE + 1];
        assert!(error(&large).contains("larger than"));
    }
}
