//! Environment variables that nothing reads: a misspelt one would be ignored in silence.

use std::collections::BTreeSet;

use clap::Command;

use crate::config::access::SECRETS;

/// What the names of all environment variables of this program begin with.
const PREFIX: &str = "X0_MSG_";

/// How many letters of a name may be wrong, so that it is still recognized.
const SIMILAR: usize = 4;

/// The variables among `names` that look like settings and are none, each with what is said of it.
#[must_use]
pub fn unknown_variables(command: &Command, names: impl Iterator<Item = String>) -> Vec<String> {
    let known = known_variables(command);
    let unknown = names.filter(|name| name.starts_with(PREFIX) && !known.contains(name));
    unknown.map(|name| describe(&name, &known)).collect()
}

/// The variables of the secrets, of a command and of its subcommands.
fn known_variables(command: &Command) -> BTreeSet<String> {
    let mut known: BTreeSet<String> = SECRETS.iter().map(|name| (*name).to_owned()).collect();
    let mut commands = vec![command];
    while let Some(command) = commands.pop() {
        let variables = command.get_arguments().filter_map(|flag| flag.get_env());
        known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
        commands.extend(command.get_subcommands());
    }
    known
}

fn describe(name: &str, known: &BTreeSet<String>) -> String {
    let distance = |known: &&String| strsim::damerau_levenshtein(name, known);
    let nearest = known.iter().min_by_key(distance).filter(|nearest| distance(nearest) <= SIMILAR);
    match nearest {
        Some(nearest) => format!("the environment variable {name} is ignored; {nearest} may be meant"),
        None => format!("the environment variable {name} is ignored; no setting has this name"),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;
    use crate::config::Config;

    fn unknown(names: &[&str]) -> Vec<String> {
        let command = Config::augment_args(Command::new("x0-msg-server"));
        let command = Command::new("x0-msg-server").subcommand(command.name("serve"));
        unknown_variables(&command, names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn a_misspelt_variable_is_told_with_the_nearest_name() {
        let told = unknown(&["X0_MSG_MAILBOX_MESAGES", "X0_MSG_PORT_8080_TCP_ADDR"]);
        assert!(told[0].ends_with("X0_MSG_MAILBOX_MESSAGES may be meant"), "{told:?}");
        assert!(told[1].contains("X0_MSG_PORT_8080_TCP_ADDR") && told[1].contains("no setting"), "{told:?}");
    }

    #[test]
    fn settings_secrets_and_variables_of_others_are_not_told() {
        let names = ["X0_MSG_LISTEN", "X0_MSG_TOKEN_SECRET", "X0_MSG_API_KEYS", "PATH", "RUST_LOG"];
        assert_eq!(unknown(&names), [""; 0]);
    }
}
