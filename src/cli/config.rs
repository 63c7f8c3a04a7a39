//! `config`: checks the settings of a broker, or prints them.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::cli::say::{note, print};
use crate::config::{Config, Secrets, Setting, Source, template, toml_value};
use crate::descriptors;
use crate::server::{check_files, derived_settings};

/// What `config` does.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Check all settings, and the files of keys and certificates that they name. Takes the flags of the broker
    Check(Box<Config>),
    /// Print all settings, and where each comes from. Secrets are not printed. Takes the flags of the broker
    Print(Box<PrintArgs>),
}

/// Settings of `config print`.
#[derive(Debug, Clone, Args)]
pub struct PrintArgs {
    #[command(flatten)]
    config: Config,
    /// Print a complete file with all defaults instead, for --config
    #[arg(long)]
    defaults: bool,
}

impl ConfigCommand {
    /// The settings in its flags.
    pub fn config_mut(&mut self) -> &mut Config {
        match self {
            Self::Check(config) => config,
            Self::Print(args) => &mut args.config,
        }
    }
}

/// Checks the files that settings name, or prints the settings. `warnings` are of what is set and has no effect.
///
/// # Errors
/// A file of keys or certificates cannot be used.
pub async fn config(command: ConfigCommand, warnings: Vec<String>) -> Result<()> {
    match command {
        ConfigCommand::Check(config) => {
            for warning in warnings {
                note(format_args!("warning: {warning}"));
            }
            let problems = check_files(&config);
            if let [first, more @ ..] = problems.as_slice() {
                more.iter().for_each(|problem| note(format_args!("x0-msg-server: {problem}")));
                bail!("{first}");
            }
            print("the settings are valid")
        }
        ConfigCommand::Print(args) if args.defaults => print(template().trim_end()),
        ConfigCommand::Print(args) => {
            descriptors::raise_limit();
            print(text(&args.config).trim_end())
        }
    }
}

/// The settings as a file (TOML), with the source of each as a comment.
fn text(config: &Config) -> String {
    let derived = derived_settings(config);
    let line = |setting: &Setting| {
        let Setting { key, values, is_list, .. } = setting;
        let derived = derived.iter().find(|(name, _)| name == key);
        let assignment = match (values.is_empty() && !is_list, derived) {
            (false, _) => format!("{key} = {}", toml_value(values, *is_list)),
            (true, Some((_, value))) => {
                format!("# {key} = {}", toml_value(std::slice::from_ref(value), false))
            }
            (true, None) => format!("# {key} ="),
        };
        format!("{assignment:<50} # {}\n", source(setting))
    };
    let mut text: String = config.sources.iter().map(line).collect();
    for variable in Secrets::variables() {
        text += &format!("# {variable} is set in the environment\n");
    }
    text
}

fn source(setting: &Setting) -> String {
    match &setting.source {
        Source::Flag => format!("--{}", setting.key),
        Source::Variable => setting.variable.clone(),
        Source::File(path, line) => format!("{}:{line}", path.display()),
        Source::Default => "default".to_owned(),
    }
}
