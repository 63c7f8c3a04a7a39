//! Settings from flags, environment variables and a file, in this order of precedence.
//!
//! The values of the file become the defaults of the flags. So one parser, clap's, takes all three, and its own precedence
//! holds.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches};

use crate::config::Config;
use crate::config::file::{DEFAULT_PATH, SettingsFile};
use crate::config::sources::{Sources, variable};

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The arguments are wrong, or an environment variable is. Or they ask for help.
    #[error("{0}")]
    Arguments(#[from] clap::Error),
    /// The file is wrong: one text for each problem.
    #[error("{}", .0.join("\n"))]
    File(Vec<String>),
}

/// All settings as flags, which read no environment variables.
pub(super) fn schema() -> Command {
    let command = Config::augment_args(Command::new("settings").no_binary_name(true));
    command.mut_args(|arg| arg.env(Resettable::Reset))
}

/// Parses a command line, and reads the file of settings if its command takes one. A [`Config`] in it needs
/// [`Config::complete`].
///
/// # Errors
/// The arguments, the environment variables or the file are wrong.
pub fn load<P: CommandFactory + FromArgMatches>(
    args: impl IntoIterator<Item = OsString>,
) -> Result<(P, Sources), LoadError> {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut matches = P::command().try_get_matches_from(&args)?;
    let schema = schema();
    let file = file_of(leaf(&matches)).map(|path| SettingsFile::read(&path, &schema)).transpose();
    let file = file.map_err(LoadError::File)?;
    if let Some(file) = &file {
        matches = with_defaults(P::command(), file).try_get_matches_from(&args)?;
    }
    let sources = Sources::of(&schema, leaf(&matches), file.as_ref());
    Ok((P::from_arg_matches(&matches)?, sources))
}

/// The innermost subcommand.
fn leaf(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, matches)| leaf(matches))
}

/// The file that a command reads.
fn file_of(matches: &ArgMatches) -> Option<PathBuf> {
    // `None` too if this command takes no file.
    let named = matches.try_get_one::<PathBuf>("config_file").ok()?;
    let default = || Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists());
    named.cloned().or_else(default)
}

/// A command whose settings have the values of the file as their defaults.
fn with_defaults(command: Command, file: &SettingsFile) -> Command {
    let command = command.mut_args(|arg| {
        let variable_of_arg = arg.get_env().map(|name| name.to_string_lossy().into_owned());
        let is_its = |key: &str| variable_of_arg.as_deref() == Some(variable(key).as_str());
        match file.values.iter().find(|value| is_its(&value.key)) {
            Some(value) => arg.default_values(value.texts.clone()),
            None => arg,
        }
    });
    command.mut_subcommands(|subcommand| with_defaults(subcommand, file))
}
