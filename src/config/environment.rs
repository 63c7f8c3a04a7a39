//! Environment variables that nothing reads: a misspelt one would be ignored in silence.

use std::collections::BTreeSet;

use clap::Command;

use crate::config::secrets::SECRETS;

/// What the names of all environment variables of this program begin with.
const PREFIX: &str = "X0_MSG_";

/// Names the process that hands over, for the one that it starts.
pub(crate) const HANDOVER_FROM: &str = "X0_MSG_HANDOVER_FROM";

/// How many letters of a name may be wrong, so that it is still recognized.
const SIMILAR: usize = 4;

/// The variables in `variables`, each with its value, that look like settings and are none: what is said of each.
#[must_use]
pub fn unknown_variables(
    command: &Command,
    variables: impl Iterator<Item = (String, String)>,
) -> Vec<String> {
    let known = known_variables(command);
    let is_unknown = |name: &str, value: &str| {
        name.starts_with(PREFIX) && !known.contains(name) && !is_of_a_service(name, value)
    };
    let unknown = variables.filter(|(name, value)| is_unknown(name, value));
    unknown.map(|(name, _)| describe(&name, &known)).collect()
}

/// Whether Kubernetes or a link of Docker has set this variable: they do so in containers beside a service that is named
/// like this program.
fn is_of_a_service(name: &str, value: &str) -> bool {
    // `X0_MSG_SERVER_PORT=tcp://10.0.0.11:8080`
    if name.ends_with("_PORT") && value.contains("://") {
        return true;
    }
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    // `X0_MSG_SERVER_PORT_8080_TCP`, and the same with `_PROTO`, `_PORT` or `_ADDR`.
    let parts: Vec<&str> = name.split('_').collect();
    let is_port = |window: &[&str]| {
        window[0] == "PORT"
            && window[1].bytes().all(|byte| byte.is_ascii_digit())
            && matches!(window[2], "TCP" | "UDP" | "SCTP")
    };
    parts.windows(3).any(is_port)
}

/// The variables of the secrets, of a command and of its subcommands.
fn known_variables(command: &Command) -> BTreeSet<String> {
    let mut known: BTreeSet<String> =
        SECRETS.iter().chain(&[HANDOVER_FROM]).map(|name| (*name).to_owned()).collect();
    let mut commands = vec![command];
    while let Some(command) = commands.pop() {
        let variables = command.get_arguments().filter_map(|flag| flag.get_env());
        known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
        commands.extend(command.get_subcommands());
    }
    known
}

/// The name among `known` that is nearest to this one, if it is similar.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |known: &str| strsim::damerau_levenshtein(name, known);
    let similar = |(distance, _): &(usize, &str)| *distance <= SIMILAR.min(name.len() / 2);
    known.map(|known| (distance(known), known)).min().filter(similar).map(|(_, known)| known)
}

fn describe(name: &str, known: &BTreeSet<String>) -> String {
    match nearest(name, known.iter().map(String::as_str)) {
        Some(nearest) => format!("the environment variable {name} is ignored; {nearest} may be meant"),
        None => format!("the environment variable {name} is ignored; no setting has this name"),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;
    use crate::config::Config;

    fn unknown(variables: &[&str]) -> Vec<String> {
        let command = Config::augment_args(Command::new("x0-msg-server"));
        let command = Command::new("x0-msg-server").subcommand(command.name("serve"));
        let pair = |variable: &&str| {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            (name.to_owned(), value.to_owned())
        };
        unknown_variables(&command, variables.iter().map(pair))
    }

    #[test]
    fn a_misspelt_variable_is_told_with_the_nearest_name() {
        let told = unknown(&["X0_MSG_MAILBOX_MESAGES", "X0_MSG_SOMETHING_ELSE_ENTIRELY", "X0_MSG_PORT=8080"]);
        assert!(told[0].ends_with("X0_MSG_MAILBOX_MESSAGES may be meant"), "{told:?}");
        assert!(
            told[1].contains("X0_MSG_SOMETHING_ELSE_ENTIRELY") && told[1].contains("no setting"),
            "{told:?}"
        );
        assert!(told[2].contains("X0_MSG_PORT is ignored"), "{told:?}");
    }

    #[test]
    fn settings_secrets_and_variables_of_others_are_not_told() {
        let names = ["X0_MSG_LISTEN", "X0_MSG_TOKEN_SECRET", "X0_MSG_API_KEYS", "PATH", "RUST_LOG"];
        assert_eq!(unknown(&names), [""; 0]);
    }

    /// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
    #[test]
    fn variables_of_a_service_beside_are_not_told() {
        for service in ["X0_MSG", "X0_MSG_SERVER", "X0_MSG_SERVER_HEADLESS"] {
            let variables = [
                "SERVICE_HOST=10.0.0.11",
                "SERVICE_PORT=8080",
                "SERVICE_PORT_HTTP=8080",
                "PORT=tcp://10.0.0.11:8080",
                "PORT_8080_TCP=tcp://10.0.0.11:8080",
                "PORT_8080_TCP_PROTO=tcp",
                "PORT_8080_TCP_PORT=8080",
                "PORT_8080_TCP_ADDR=10.0.0.11",
            ];
            let variables = variables.map(|variable| format!("{service}_{variable}"));
            let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
            assert_eq!(unknown(&variables), [""; 0]);
        }
    }
}
