//! Who is when.

/// The order of `count` builders in the run `run`, from 0.
///
/// What one leaves behind (a journal to be written, freed blocks) is paid for by the next. So not
/// only is each first as often as any other, each also comes after every other equally often:
/// Williams's Latin square, over `count` runs for an even count and twice that for an odd one.
pub(crate) fn order(count: usize, run: usize) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    // 0, 1, n-1, 2, n-2 …
    let first = (0..count).map(|turn| match turn % 2 {
        0 => (count - turn / 2) % count,
        _ => turn / 2 + 1,
    });
    let mut order: Vec<_> = first.map(|number| (number + run) % count).collect();
    if count % 2 == 1 && (run / count) % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::order;

    #[test]
    fn each_follows_every_other_equally_often() {
        for count in 1..7_usize {
            let runs = count * (1 + count % 2);
            let mut firsts = BTreeMap::new();
            let mut pairs = BTreeMap::new();
            for run in 0..runs {
                let order = order(count, run);
                *firsts.entry(order[0]).or_insert(0) += 1;
                for pair in order.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_insert(0) += 1;
                }
            }
            assert_eq!(firsts.len(), count);
            assert!(firsts.values().all(|times| *times == runs / count));
            assert_eq!(pairs.len(), count * (count - 1));
            assert!(
                pairs.values().all(|times| *times == runs / count),
                "{pairs:?}"
            );
        }
    }
}
