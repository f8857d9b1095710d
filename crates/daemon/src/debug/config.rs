//! The keys of an exported cache: `application/vnd.buildkit.cacheconfig.v0`, as an exporter
//! writes it (`cache/remotecache/v1` in BuildKit).

use serde::Deserialize;

use super::keys::{Graph, Way};

#[derive(Default, Deserialize)]
#[serde(default)]
struct CacheConfig {
    layers: Option<Vec<Layer>>,
    records: Option<Vec<Record>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Layer {
    /// -1 for the lowest.
    parent: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Record {
    digest: String,
    inputs: Option<Vec<Option<Vec<Input>>>>,
    layers: Option<Vec<LayerResult>>,
    chains: Option<Vec<Chain>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Input {
    selector: String,
    link: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LayerResult {
    layer: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Chain {
    layers: Option<Vec<i64>>,
}

/// How far something was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    No,
    Begun,
    Done,
}

/// The keys that the configuration `json` describes. Layers need not be there.
///
/// # Errors
/// It is no such configuration: what links name is not there, or they lead in circles.
pub(super) fn graph(json: &[u8]) -> Result<Graph, String> {
    let config: CacheConfig = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let layers = config.layers.unwrap_or_default();
    let records = config.records.unwrap_or_default();
    check_layers(&layers, &records)?;
    let links = links(&records)?;
    check_order(&links)?;
    // What has no inputs is named by its digest, others only here.
    let names: Vec<String> = records
        .iter()
        .enumerate()
        .map(|(number, record)| match links[number].is_empty() {
            true => record.digest.clone(),
            false => number.to_string(),
        })
        .collect();
    let mut graph = Graph::default();
    for (number, links) in links.iter().enumerate() {
        graph.keys.insert(names[number].clone());
        for (input, selector, from) in links {
            graph.ways.insert(Way {
                from: names[*from].clone(),
                input: *input,
                // An exporter puts the output into the digest.
                output: 0,
                digest: records[number].digest.clone(),
                selector: (*selector).to_owned(),
                to: names[number].clone(),
            });
        }
    }
    Ok(graph)
}

/// For each record: input, selector and the number of the record that it comes from.
type Links<'a> = Vec<Vec<(usize, &'a str, usize)>>;

fn links(records: &[Record]) -> Result<Links<'_>, String> {
    let mut all = Vec::with_capacity(records.len());
    for (number, record) in records.iter().enumerate() {
        let mut links = Vec::new();
        for (input, inputs) in record.inputs.iter().flatten().enumerate() {
            let inputs = inputs.as_deref().unwrap_or_default();
            if inputs.is_empty() {
                return Err(format!("invalid empty input for record {number}"));
            }
            for one in inputs {
                let from = usize::try_from(one.link).ok();
                let from = from.filter(|from| *from < records.len());
                let from = from.ok_or_else(|| format!("invalid record ID: {}", one.link))?;
                links.push((input, one.selector.as_str(), from));
            }
        }
        all.push(links);
    }
    Ok(all)
}

/// Whether the records can be made one after the other.
fn check_order(links: &Links<'_>) -> Result<(), String> {
    let mut seen = vec![Seen::No; links.len()];
    for start in 0..links.len() {
        // The record, and how many of its inputs were looked at.
        let mut open = vec![(start, 0)];
        while let Some((record, next)) = open.pop() {
            if next == 0 {
                match seen[record] {
                    Seen::Done => continue,
                    Seen::Begun => return Err("invalid looping record".to_owned()),
                    Seen::No => seen[record] = Seen::Begun,
                }
            }
            match links[record].get(next) {
                Some((_, _, from)) => {
                    open.push((record, next + 1));
                    open.push((*from, 0));
                }
                None => seen[record] = Seen::Done,
            }
        }
    }
    Ok(())
}

fn check_layers(layers: &[Layer], records: &[Record]) -> Result<(), String> {
    let mut seen = vec![Seen::No; layers.len()];
    let place = |layer: i64| {
        let place = usize::try_from(layer).ok();
        let place = place.filter(|place| *place < layers.len());
        place.ok_or_else(|| format!("invalid layer index {layer}"))
    };
    for record in records {
        for result in record.layers.iter().flatten() {
            let mut chain = Vec::new();
            let mut layer = result.layer;
            loop {
                let at = place(layer)?;
                match seen[at] {
                    Seen::Done => break,
                    Seen::Begun => return Err("invalid looping layer".to_owned()),
                    Seen::No => seen[at] = Seen::Begun,
                }
                chain.push(at);
                layer = layers[at].parent;
                if layer == -1 {
                    break;
                }
            }
            for at in chain {
                seen[at] = Seen::Done;
            }
        }
        for chain in record.chains.iter().flatten() {
            for layer in chain.layers.iter().flatten() {
                place(*layer)?;
            }
        }
    }
    Ok(())
}
