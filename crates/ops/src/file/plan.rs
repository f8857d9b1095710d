//! In which order actions are done, and where states have to be kept.

use cooper_proto::pb::{self, file_action::Action, user_opt::User};

use crate::OpsError;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The actions that the outputs need, each after those that it needs itself.
    pub(super) order: Vec<usize>,
    /// For each output the action that makes it.
    pub(super) outputs: Vec<usize>,
    /// For each action whether its state is used more than once: then it cannot simply be
    /// changed on.
    pub(super) keep: Vec<bool>,
}

/// Checks the numbers of the actions, for `inputs` inputs, and orders them.
pub(super) fn plan(actions: &[pb::FileAction], inputs: usize) -> Result<Plan, OpsError> {
    let all = inputs + actions.len();
    let valid = |index: i64| index == -1 || usize::try_from(index).is_ok_and(|i| i < all);
    let mut outputs: Vec<Option<usize>> = Vec::new();
    for (place, action) in actions.iter().enumerate() {
        if !valid(action.input) {
            let input = action.input;
            return Err(OpsError::invalid(format!(
                "invalid input index {input}, {all} provided"
            )));
        }
        if !valid(action.secondary_input) {
            let input = action.secondary_input;
            return Err(OpsError::invalid(format!(
                "invalid secondary input index {input}, {inputs} provided"
            )));
        }
        if action.output == -1 {
            continue;
        }
        let output = usize::try_from(action.output)
            .ok()
            .filter(|output| *output < actions.len())
            .ok_or_else(|| OpsError::invalid("missing output index 0"))?;
        if outputs.len() <= output {
            outputs.resize(output + 1, None);
        }
        if outputs[output].replace(place).is_some() {
            return Err(OpsError::invalid(format!("duplicate output {output}")));
        }
    }
    if outputs.is_empty() {
        return Err(OpsError::invalid("no outputs specified"));
    }
    let missing = |output| OpsError::invalid(format!("missing output index {output}"));
    let outputs = outputs
        .into_iter()
        .enumerate()
        .map(|(output, place)| place.ok_or_else(|| missing(output)))
        .collect::<Result<Vec<_>, _>>()?;

    let order = order(actions, inputs, &outputs)?;
    let mut uses = vec![0; actions.len()];
    for output in &outputs {
        uses[*output] += 2;
    }
    for place in &order {
        let action = &actions[*place];
        for (needed, only_read) in needs(action, inputs) {
            uses[needed] += if only_read { 2 } else { 1 };
        }
    }
    Ok(Plan {
        order,
        outputs,
        keep: uses.into_iter().map(|count| count > 1).collect(),
    })
}

/// The actions that an action needs; whether it only reads what they made.
fn needs(action: &pb::FileAction, inputs: usize) -> Vec<(usize, bool)> {
    let mut needs = vec![(action.input, false), (action.secondary_input, true)];
    let owner = match &action.action {
        Some(Action::Copy(copy)) => copy.owner.as_ref(),
        Some(Action::Mkfile(mkfile)) => mkfile.owner.as_ref(),
        Some(Action::Mkdir(mkdir)) => mkdir.owner.as_ref(),
        Some(Action::Symlink(symlink)) => symlink.owner.as_ref(),
        Some(Action::Rm(_)) | None => None,
    };
    for name in owner
        .into_iter()
        .flat_map(|owner| [&owner.user, &owner.group])
    {
        if let Some(Some(User::ByName(name))) = name.as_ref().map(|name| &name.user) {
            needs.push((name.input, true));
        }
    }
    needs
        .into_iter()
        .filter_map(|(index, only_read)| {
            let place = usize::try_from(index).ok()?.checked_sub(inputs)?;
            Some((place, only_read))
        })
        .collect()
}

/// An explicit stack: how deep it goes is the client's to choose.
fn order(
    actions: &[pb::FileAction],
    inputs: usize,
    outputs: &[usize],
) -> Result<Vec<usize>, OpsError> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut states = vec![State::New; actions.len()];
    let mut order = Vec::new();
    for output in outputs {
        let mut stack = vec![(*output, 0)];
        while let Some((place, next)) = stack.pop() {
            let state = states
                .get(place)
                .ok_or_else(|| OpsError::invalid(format!("invalid user index: {place}")))?;
            match (state, next) {
                (State::Done, _) => continue,
                (State::Open, 0) => {
                    let index = inputs + place;
                    return Err(OpsError::invalid(format!("loop from index {index}")));
                }
                _ => states[place] = State::Open,
            }
            match needs(&actions[place], inputs).get(next) {
                Some((needed, _)) => {
                    stack.push((place, next + 1));
                    stack.push((*needed, 0));
                }
                None => {
                    states[place] = State::Done;
                    order.push(place);
                }
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(numbers: &[[i64; 3]]) -> Vec<pb::FileAction> {
        let action = |[input, secondary_input, output]: &[i64; 3]| pb::FileAction {
            input: *input,
            secondary_input: *secondary_input,
            output: *output,
            action: Some(Action::Rm(pb::FileActionRm::default())),
        };
        numbers.iter().map(action).collect()
    }

    #[test]
    fn actions_come_after_what_they_need_and_shared_states_are_kept() {
        let found = plan(&actions(&[[0, -1, -1], [2, 1, 0]]), 2).unwrap();
        assert_eq!(found.order, [0, 1]);
        assert_eq!(found.keep, [false, true]);
        // The second is made of the third; the first is not needed at all.
        let found = plan(&actions(&[[0, -1, -1], [3, -1, 0], [0, -1, -1]]), 1).unwrap();
        assert_eq!(found.order, [2, 1]);
        // One state is copied from and changed.
        let found = plan(&actions(&[[0, -1, -1], [0, 1, -1], [1, 2, 0]]), 1).unwrap();
        assert_eq!(found.keep, [true, true, true]);
        let found = plan(&actions(&[[0, -1, 1], [1, -1, 0]]), 1).unwrap();
        assert_eq!(found.outputs, [1, 0]);
        assert_eq!(found.order, [0, 1]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_buildkits_words() {
        for (numbers, expected) in [
            (&[[5, -1, 0]][..], "invalid input index 5, 2 provided"),
            (
                &[[0, -3, 0]],
                "invalid secondary input index -3, 1 provided",
            ),
            (&[[0, -1, -1]], "no outputs specified"),
            (&[[0, -1, 0], [1, -1, 0]], "duplicate output 0"),
            (&[[0, -1, 1], [1, -1, -1]], "missing output index 0"),
            (&[[2, -1, -1], [1, -1, 0]], "loop from index 2"),
            (&[[1, -1, 0]], "loop from index 1"),
        ] {
            let error = plan(&actions(numbers), 1).unwrap_err();
            assert_eq!(error.to_string(), expected, "{numbers:?}");
        }
    }
}
