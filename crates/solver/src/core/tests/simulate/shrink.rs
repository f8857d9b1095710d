//! Makes a failing case smaller, for who has to understand it.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::graph::{Case, Node};

/// How long it is tried.
const LIMIT: Duration = Duration::from_secs(30);

/// The smallest case that is found soon of which `fails` holds.
pub(super) fn shrink(mut case: Case, fails: impl Fn(&Case) -> bool) -> Case {
    let begun = Instant::now();
    case = thin(case, &fails, begun);
    loop {
        let mut smaller = false;
        let mut number = 0;
        while let Some(next) = change(&case, number) {
            if begun.elapsed() > LIMIT {
                return case;
            }
            // What changes nothing is none.
            let changed = format!("{next:?}") != format!("{case:?}");
            if changed && is_sound(&next) && fails(&next) {
                case = next;
                smaller = true;
            } else {
                number += 1;
            }
        }
        if !smaller {
            return case;
        }
    }
}

/// Leaves many vertices out at once, then fewer.
fn thin(mut case: Case, fails: &impl Fn(&Case) -> bool, begun: Instant) -> Case {
    let mut many = longest(&case) / 2;
    while many > 1 {
        let mut end = longest(&case);
        while end > 0 && begun.elapsed() < LIMIT {
            let begin = end.saturating_sub(many);
            let next = without(&case, begin..end);
            if is_sound(&next) && fails(&next) {
                case = next;
            }
            end = begin;
        }
        many /= 2;
    }
    case
}

/// The case without these vertices of each graph.
fn without(case: &Case, places: Range<usize>) -> Case {
    let mut next = case.clone();
    for place in places.rev() {
        for graph in graphs(&mut next) {
            leave_out(graph, place);
        }
    }
    for job in &mut next.jobs {
        for (vertex, output) in &mut job.targets {
            *vertex = (*vertex).min(job.graph.len() - 1);
            *output = (*output).min(case.outputs(&job.graph[*vertex]) - 1);
        }
    }
    next
}

/// The case with one thing left out; `None` when there are not that many things.
fn change(case: &Case, mut number: usize) -> Option<Case> {
    let mut next = case.clone();
    // Which of so many things it is.
    let mut take = |count: usize| {
        let taken = (number < count).then_some(number);
        number = number.saturating_sub(count);
        taken
    };
    let size = longest(case);
    if let Some(place) = take(if case.jobs.len() > 1 {
        case.jobs.len()
    } else {
        0
    }) {
        next.jobs.remove(place);
    } else if let Some(place) = take(case.before.len()) {
        next.before.remove(place);
    } else if let Some(place) = take(case.sources.len()) {
        next.sources.remove(place);
        for job in &mut next.jobs {
            job.sources
                .retain(|source| *source + 1 < case.sources.len());
        }
    } else if let Some(place) = take(size) {
        next = without(case, size - 1 - place..size - place);
    } else if let Some(place) = take(case.jobs.iter().map(|job| job.targets.len()).sum()) {
        let mut place = place;
        for job in &mut next.jobs {
            if place < job.targets.len() && job.targets.len() > 1 {
                job.targets.remove(place);
                break;
            }
            place = place.wrapping_sub(job.targets.len());
        }
    } else if let Some(place) = take(size) {
        for graph in graphs(&mut next) {
            if let Some(node) = graph.get_mut(place) {
                node.fleeting = false;
                node.anew = false;
            }
        }
    } else if let Some(place) = take(size) {
        for graph in graphs(&mut next) {
            if let Some(node) = graph.get_mut(place).filter(|node| node.inputs.len() > 1) {
                node.inputs.pop();
            }
        }
    } else if let Some(place) = take(case.kinds.len()) {
        next.kinds[place].maps = 1;
    } else {
        return None;
    }
    Some(next)
}

/// Whether all inputs are there.
fn is_sound(case: &Case) -> bool {
    let mut case = case.clone();
    let all: Vec<_> = graphs(&mut case).map(|graph| graph.clone()).collect();
    all.iter().all(|graph| {
        let mut inputs = graph.iter().flat_map(|node| &node.inputs);
        inputs.all(|(vertex, output)| *output < case.outputs(&graph[*vertex]))
    })
}

fn graphs(case: &mut Case) -> impl Iterator<Item = &mut Vec<Node>> {
    let there = case
        .sources
        .iter_mut()
        .flat_map(|source| &mut source.graphs);
    let here = case.before.iter_mut().chain(there);
    here.chain(case.jobs.iter_mut().map(|job| &mut job.graph))
}

fn longest(case: &Case) -> usize {
    let jobs = case.jobs.iter().map(|job| job.graph.len());
    jobs.max().unwrap_or_default()
}

/// Those who took an input of the vertex take its first one instead.
fn leave_out(graph: &mut Vec<Node>, place: usize) {
    if graph.len() <= 1 || place >= graph.len() {
        return;
    }
    let gone = graph.remove(place);
    for node in &mut graph[place..] {
        let inputs = std::mem::take(&mut node.inputs).into_iter();
        let inputs = inputs.filter_map(|(vertex, output)| match vertex.cmp(&place) {
            std::cmp::Ordering::Less => Some((vertex, output)),
            std::cmp::Ordering::Equal => gone.inputs.first().copied(),
            std::cmp::Ordering::Greater => Some((vertex - 1, output)),
        });
        node.inputs = inputs.collect();
    }
}
