//! Finding the earlier note that is nearest to a vertex, and the first difference.

use std::collections::HashSet;
use std::sync::Arc;

use oci_spec::image::Digest;

use super::memory::hash;
use super::{
    Cause, Description, Explanation, FileList, Journal, Note, NoteInput, on_input, places, position,
};
use crate::keys::KeyId;

/// Notes that are looked at in one place.
const CANDIDATES: usize = 32;
/// Steps that are followed towards the sources.
const MAX_DEPTH: usize = 64;

/// A vertex that has to be carried out.
pub(crate) struct Miss {
    pub(crate) vertex: Digest,
    pub(crate) name: String,
    /// The digest of the operation.
    pub(crate) digest: Digest,
    pub(crate) description: Description,
    /// Whether the cache is not to be used for it.
    pub(crate) anew: bool,
    pub(crate) inputs: Vec<MissInput>,
    /// The operations of the builds that ask: an earlier step that is one of them did not
    /// become another one.
    pub(crate) builds: Vec<Arc<Operations>>,
}

impl Miss {
    /// Whether an operation is in the build.
    fn builds(&self, operation: &Digest) -> bool {
        self.builds.iter().any(|build| build.has(operation))
    }
}

/// A set of operations, by hashes of their digests.
#[derive(Default)]
pub(crate) struct Operations(HashSet<u64>);

impl Operations {
    pub(crate) fn add(&mut self, operation: &Digest) {
        self.0.insert(hash(operation));
    }

    fn has(&self, operation: &Digest) -> bool {
        self.0.contains(&hash(operation))
    }
}

/// An input of it as it is now.
#[derive(Default)]
pub(crate) struct MissInput {
    /// The name of its vertex.
    pub(crate) name: String,
    /// The digest of its operation.
    pub(crate) digest: Option<Digest>,
    pub(crate) description: Option<Description>,
    pub(crate) keys: Vec<KeyId>,
    /// Whether results that hang on the keys count: not if it is built anew.
    pub(crate) counts: bool,
    /// The key of what the operation sees of it.
    pub(crate) content: Option<KeyId>,
    /// The files behind that key.
    pub(crate) files: Option<FileList>,
    /// Why it was carried out itself, if it was.
    pub(crate) explanation: Option<Arc<Explanation>>,
}

impl MissInput {
    /// Whether it is the step whose result `earlier` is, which was made anew.
    fn replaces(&self, earlier: &NoteInput) -> bool {
        let explanation = self.explanation.as_ref();
        let against = explanation.and_then(|explanation| explanation.against.as_ref());
        against.is_some_and(|key| earlier.has(key))
    }

    fn is(&self, earlier: &NoteInput) -> bool {
        (self.counts && self.keys.iter().any(|key| earlier.has(key)))
            || (self.content.is_some()
                && self.content.as_ref().map(KeyId::as_str) == earlier.content.as_deref())
    }
}

/// Says why. Reads from the journal: blocks for the disk.
pub(crate) fn explain(journal: &dyn Journal, miss: &Miss) -> Explanation {
    let (cause, against) = if miss.anew {
        (Cause::NoCache, None)
    } else {
        match nearest(journal, miss) {
            None => (Cause::First, None),
            Some((key, earlier)) => {
                let cause = Comparison { journal, miss }.cause(&earlier);
                (cause, Some(key))
            }
        }
    };
    Explanation {
        vertex: miss.vertex.clone(),
        name: miss.name.clone(),
        cause,
        against,
    }
}

/// The note that has most in common with the vertex.
fn nearest(journal: &dyn Journal, miss: &Miss) -> Option<(KeyId, Note)> {
    let mut looked_at = places(&miss.name, &miss.digest, &miss.description);
    // Steps of other projects have positions, too: it is enough for what has no inputs only.
    if !miss.inputs.is_empty() {
        looked_at.truncate(2);
    }
    let inputs = miss.inputs.iter();
    let keys = inputs.flat_map(|input| input.keys.iter().chain(&input.content));
    looked_at.extend(keys.map(|key| on_input(&miss.description, key.as_str())));
    let mut seen: HashSet<KeyId> = HashSet::new();
    let mut candidates = Vec::new();
    // When something was there last that stands elsewhere now: this one is new before it.
    let mut moved = 0;
    for place in &looked_at {
        for (key, note) in journal.at(place, CANDIDATES) {
            if !seen.insert(key.clone()) || note.description.kind != miss.description.kind {
                continue;
            }
            let used = journal.last_used(&key);
            if note.digest != miss.digest && miss.builds(&note.digest) {
                let here = |(now, then): (&MissInput, &NoteInput)| now.is(then);
                if miss.inputs.iter().zip(&note.inputs).all(here) {
                    moved = moved.max(used);
                }
                continue;
            }
            if let Some(distance) = distance(miss, &note) {
                candidates.push((distance, used, key, note));
            }
        }
    }
    let is_it = |note: &Note| {
        note.digest == miss.digest || note.description.subject == miss.description.subject
    };
    candidates.retain(|(_, used, _, note)| *used >= moved || is_it(note));
    // The newest of those that are equally near; they come with the newest first.
    candidates.sort_by_key(|(distance, used, ..)| (*distance, u64::MAX - used));
    candidates.truncate(CANDIDATES);
    for (distance, _, _, note) in &mut candidates {
        *distance += files_apart(journal, miss, note);
    }
    let best = candidates
        .into_iter()
        .min_by_key(|(distance, used, ..)| (*distance, u64::MAX - used));
    best.map(|(_, _, key, note)| (key, note))
}

/// How far a note is from the vertex, its files left out; `None`: it is another step.
fn distance(miss: &Miss, note: &Note) -> Option<usize> {
    let (now, then) = (&miss.description, &note.description);
    let mut distance = 0;
    if now.subject != then.subject {
        // What is the same but for its place is nearer than what is another thing here.
        distance += 40;
        let at = position(&miss.name);
        let same_position = at.is_some() && at == position(&note.name);
        if note.digest != miss.digest && !same_position && likeness(now, then) < LIKE {
            return None;
        }
    }
    if position(&miss.name) != position(&note.name) {
        distance += 5;
    }
    for pair in miss.inputs.iter().zip(&note.inputs) {
        let (now, then) = pair;
        let by_content = now.content.is_some() || then.content.is_some();
        if !by_content && !now.is(then) {
            // That of the same step before it changed is nearer than any.
            distance += if now.replaces(then) { 8 } else { 30 };
        }
    }
    distance += 30 * miss.inputs.len().abs_diff(note.inputs.len());
    let changed = now.parts.iter().filter(|part| !then.parts.contains(part));
    let gone = then
        .parts
        .iter()
        .filter(|part| now.get(&part.name).is_none());
    Some(distance + 10 * (changed.count() + gone.count()).min(20))
}

/// How many files differ between what the vertex sees and what it saw.
fn files_apart(journal: &dyn Journal, miss: &Miss, note: &Note) -> usize {
    let pairs = miss.inputs.iter().zip(&note.inputs);
    let changed = pairs.filter(|(now, _)| now.content.is_some());
    let changed = changed.filter(|(now, then)| !now.is(then));
    changed
        .map(|(now, then)| {
            let old = then.files.as_ref().and_then(|name| journal.files(name));
            let difference = match (&old, &now.files) {
                (Some(old), Some(new)) => FileList::difference(old, new),
                _ => None,
            };
            5 + difference.map_or(30, |(_, more)| more.min(30))
        })
        .sum()
}

/// How alike the subjects of two steps are at least that are one step that changed.
const LIKE: f64 = 0.3;

/// How many words two subjects share, from 0 to 1.
fn likeness(a: &Description, b: &Description) -> f64 {
    let words = |text: &'_ str| -> HashSet<String> {
        let words = text.split(|c: char| !c.is_alphanumeric());
        let words = words.filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let (a, b) = (words(&a.subject), words(&b.subject));
    let all = a.union(&b).count().max(1);
    a.intersection(&b).count() as f64 / all as f64
}

struct Comparison<'a> {
    journal: &'a dyn Journal,
    miss: &'a Miss,
}

impl Comparison<'_> {
    /// The first difference: steps before it, then what it is itself, then what it sees of
    /// files.
    fn cause(&self, earlier: &Note) -> Cause {
        let pairs = || self.miss.inputs.iter().zip(&earlier.inputs);
        if self.miss.inputs.len() == earlier.inputs.len() {
            let changed = pairs().find(|(now, then)| {
                let by_content = now.content.is_some() || then.content.is_some();
                !by_content && !now.is(then)
            });
            if let Some((now, then)) = changed {
                return self.input(now, then, earlier);
            }
        }
        let now = &self.miss.description;
        if let Some(part) = part(now, &earlier.description) {
            return part;
        }
        if let Some((now, then)) = pairs().find(|(now, then)| !now.is(then)) {
            return self.content(now, then, earlier);
        }
        match &earlier.pruned {
            Some(pruned) => Cause::Pruned(pruned.clone()),
            None if earlier.digest != self.miss.digest => Cause::Part {
                name: "the definition of the step".to_owned(),
                old: None,
                new: None,
            },
            None => Cause::Gone,
        }
    }

    /// Why an input has another key than it had for `earlier`.
    fn input(&self, now: &MissInput, then: &NoteInput, earlier: &Note) -> Cause {
        let mut keys = then.keys.iter().map(|key| KeyId::new(key));
        let before = keys.find_map(|key| Some((self.journal.of(&key)?, key)));
        if now.description.as_ref().is_some_and(|now| now.volatile) {
            let input = now.name.clone();
            return Cause::Content { input };
        }
        let because = |cause: Cause| because(&now.name, cause);
        let Some(explanation) = &now.explanation else {
            return match (self.note(now), before) {
                (Some(note), Some((before, _))) => self.between(&note, &before, 0),
                _ => because(Cause::First),
            };
        };
        let cause = &explanation.cause;
        // It is made again only because it was pruned: so was this one, else it had been found
        // without its inputs.
        let again = matches!(cause.root(), Cause::Pruned(_) | Cause::Gone);
        if let (true, Some(pruned)) = (again, &earlier.pruned) {
            return Cause::Pruned(pruned.clone());
        }
        if let Some((before, key)) = before {
            let same = now.digest.as_ref() == Some(&before.digest);
            let replaced = explanation.against.as_ref() == Some(&key);
            if same || replaced || *cause == Cause::First {
                return because(cause.clone());
            }
            if self.miss.builds(&before.digest) {
                return Cause::Order {
                    before: before.name,
                    now: now.name.clone(),
                };
            }
            // The same step as it was another time than the one that it was compared with.
            if let Some(description) = &now.description
                && is_like(
                    (description, &now.name),
                    (&before.description, &before.name),
                )
                && let Some(part) = part(description, &before.description)
            {
                return because(part);
            }
        }
        because(cause.clone())
    }

    /// What is known of an input that was found in the cache.
    fn note(&self, now: &MissInput) -> Option<Note> {
        let known = now.keys.iter().find_map(|key| self.journal.of(key));
        // By one of its keys it may have been met as something else: it is what it says now.
        match (&now.digest, &now.description) {
            (Some(digest), Some(description)) => Some(Note {
                name: now.name.clone(),
                digest: digest.clone(),
                description: description.clone(),
                inputs: known.map(|note| note.inputs).unwrap_or_default(),
                pruned: None,
            }),
            _ => known,
        }
    }

    /// What differs between a step and the one that was in its place.
    fn between(&self, now: &Note, then: &Note, depth: usize) -> Cause {
        let because = |cause: Cause| because(&now.name, cause);
        let (description, earlier) = (&now.description, &then.description);
        let sources = now.inputs.is_empty() && then.inputs.is_empty();
        let elsewhere = now.digest != then.digest && self.miss.builds(&then.digest);
        let same = now.digest == then.digest
            || (description.kind == earlier.kind
                && !elsewhere
                && (sources || description.subject == earlier.subject));
        if !same || depth >= MAX_DEPTH {
            return Cause::Order {
                before: then.name.clone(),
                now: now.name.clone(),
            };
        }
        let mut pairs = now.inputs.iter().zip(&then.inputs);
        let changed = pairs.find(|(now, then)| {
            let known = !now.keys.is_empty() && !then.keys.is_empty();
            let same_content = now.content.is_some() && now.content == then.content;
            known && !same_content && !now.keys.iter().any(|key| then.keys.contains(key))
        });
        if let Some((now, then)) = changed
            && now.content.is_none()
        {
            let note = |input: &NoteInput| {
                let mut keys = input.keys.iter();
                keys.find_map(|key| self.journal.of(&KeyId::new(key)))
            };
            if let (Some(now), Some(then)) = (note(now), note(then)) {
                return self.between(&now, &then, depth + 1);
            }
        }
        if let Some(part) = part(description, earlier) {
            return because(part);
        }
        if let Some((now, then)) = changed
            && let Some(new) = now.files.as_ref()
            && let Some(new) = self.journal.files(new)
            && let Some(cause) = self.files(then, &new)
        {
            return because(cause);
        }
        match &then.pruned {
            Some(pruned) => because(Cause::Pruned(pruned.clone())),
            None => because(Cause::Gone),
        }
    }

    /// Why the operation sees something else of an input.
    fn content(&self, now: &MissInput, then: &NoteInput, earlier: &Note) -> Cause {
        let files = || self.files(then, now.files.as_ref()?);
        match &now.explanation {
            Some(_) => self.input(now, then, earlier),
            None => files().unwrap_or_else(|| match now.content.is_some() {
                true => Cause::Content {
                    input: now.name.clone(),
                },
                false => self.input(now, then, earlier),
            }),
        }
    }

    fn files(&self, then: &NoteInput, now: &FileList) -> Option<Cause> {
        let old = self.journal.files(then.files.as_ref()?)?;
        let (change, more) = FileList::difference(&old, now)?;
        Some(Cause::File { change, more })
    }
}

/// Whether two descriptions are of one step, with their names.
fn is_like((now, name): (&Description, &str), (then, before): (&Description, &str)) -> bool {
    let at = position(name);
    let same_position = at.is_some() && at == position(before);
    now.kind == then.kind
        && (now.subject == then.subject || same_position || likeness(now, then) >= LIKE)
}

/// What a change of the step `step` is to those after it. Of several steps the first one that
/// changed is named.
fn because(step: &str, cause: Cause) -> Cause {
    match cause {
        Cause::Input { .. } => cause,
        cause => Cause::Input {
            step: step.to_owned(),
            root: Arc::new(cause),
        },
    }
}

/// The first part that differs.
fn part(now: &Description, then: &Description) -> Option<Cause> {
    let changed = |name: &str, old: Option<&str>, new: Option<&str>| Cause::Part {
        name: name.to_owned(),
        old: old.map(str::to_owned),
        new: new.map(str::to_owned),
    };
    for part in &now.parts {
        match then.get(&part.name) {
            Some(old) if old == part.value => {}
            old => return Some(changed(&part.name, old, Some(&part.value))),
        }
    }
    let gone = then.parts.iter().find(|part| now.get(&part.name).is_none());
    if let Some(part) = gone {
        return Some(changed(&part.name, Some(&part.value), None));
    }
    let differs = now.wiring != then.wiring;
    differs.then(|| changed("the use of its inputs", None, None))
}
