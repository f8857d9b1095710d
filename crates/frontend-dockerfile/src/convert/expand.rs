//! Variables in instructions.

use cooper_dockerfile::{Command, Instruction, Lex, SourcesAndDest};
use cooper_frontend::FrontendError;

use super::args::Vars;
use super::{Converter, Result};

impl Converter<'_> {
    /// Expands the variables of an instruction. All of it sees the variables as they are before.
    pub(super) fn expand(&mut self, place: usize, command: &mut Command) -> Result<()> {
        let env = self.stages[place].state.env().clone();
        let lex = self.lex.clone();
        let mut raw_lex = Lex::new('\\');
        raw_lex.skip_quotes = true;
        let mut unmatched = std::collections::BTreeSet::new();
        let mut with = |lex: &Lex, text: &mut String| -> Result<()> {
            let expanded = lex
                .expand(text, &Vars(&env))
                .map_err(|error| FrontendError::invalid(error.to_string()))?;
            unmatched.extend(expanded.unmatched);
            *text = expanded.text;
            Ok(())
        };
        let result = (|| {
            let mut word = |text: &mut String| with(&lex, text);
            match &mut command.instruction {
                Instruction::Env(pairs) | Instruction::Label(pairs) => {
                    for pair in pairs {
                        word(&mut pair.key)?;
                        word(&mut pair.value)?;
                    }
                }
                Instruction::Add(add) => {
                    word(&mut add.chown)?;
                    word(&mut add.chmod)?;
                    word(&mut add.checksum)?;
                    add.exclude.iter_mut().try_for_each(&mut word)?;
                    paths(&mut add.sources, &mut word)?;
                    contents(&mut add.sources, |text| with(&raw_lex, text))?;
                }
                Instruction::Copy(copy) => {
                    word(&mut copy.chown)?;
                    word(&mut copy.chmod)?;
                    copy.exclude.iter_mut().try_for_each(&mut word)?;
                    paths(&mut copy.sources, &mut word)?;
                    contents(&mut copy.sources, |text| with(&raw_lex, text))?;
                }
                Instruction::Workdir(text)
                | Instruction::User(text)
                | Instruction::StopSignal(text) => word(text)?,
                Instruction::Volume(volumes) => volumes.iter_mut().try_for_each(&mut word)?,
                Instruction::Run(run) => run.devices.iter_mut().try_for_each(&mut word)?,
                _ => {}
            }
            Ok(())
        })();
        self.check_unmatched(place, command, unmatched);
        result
    }
}

fn paths(
    sources: &mut SourcesAndDest,
    word: &mut impl FnMut(&mut String) -> Result<()>,
) -> Result<()> {
    sources.paths.iter_mut().try_for_each(&mut *word)?;
    word(&mut sources.dest)
}

/// Quotes in a document are nothing but characters.
fn contents(
    sources: &mut SourcesAndDest,
    mut expand: impl FnMut(&mut String) -> Result<()>,
) -> Result<()> {
    sources
        .contents
        .iter_mut()
        .filter(|content| content.expand)
        .try_for_each(|content| expand(&mut content.data))
}
