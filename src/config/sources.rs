//! Where the value of each setting comes from.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::file::{SettingsFile, is_setting};

/// The headings of settings that are limits.
const LIMITS: &str = "Limits";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Variable,
    /// This line of the file of settings.
    File(PathBuf, usize),
    /// Nothing sets it.
    Default,
}

/// One setting as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name: that of its flag and in the file.
    pub key: String,
    /// Its environment variable.
    pub variable: String,
    /// Its values as they were written; none if it is not set. Passwords in URLs are left out.
    pub values: Vec<String>,
    /// Where they come from.
    pub source: Source,
    /// Whether it takes a list.
    pub is_list: bool,
    /// Whether it is a limit that has another value than its default.
    pub is_changed_limit: bool,
}

/// All settings as text, in the order of `--help`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources(Vec<Setting>);

impl Sources {
    /// The settings of a command line, of all flags in `schema`.
    pub(super) fn of(schema: &Command, matches: &ArgMatches, file: Option<&SettingsFile>) -> Self {
        let settings = schema.get_arguments().filter(|arg| is_setting(arg) && !arg.is_hide_set());
        Self(settings.filter_map(|arg| Setting::of(arg, matches, file)).collect())
    }

    /// The settings.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter()
    }

    /// The setting of this name.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.0.iter().find(|setting| setting.key == key)
    }

    /// Whether a flag or the environment sets this.
    #[must_use]
    pub fn is_explicit(&self, key: &str) -> bool {
        self.get(key).is_some_and(|setting| matches!(setting.source, Source::Flag | Source::Variable))
    }

    /// Whether it was given on the command line, which everyone on the machine can read.
    #[must_use]
    pub fn is_flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|setting| setting.source == Source::Flag)
    }

    /// The limits that have another value than their default, as `name=value`.
    #[must_use]
    pub fn changed_limits(&self) -> Vec<String> {
        let changed = self.0.iter().filter(|setting| setting.is_changed_limit);
        changed.map(|setting| format!("{}={}", setting.key, setting.values.join(","))).collect()
    }

    /// Takes the value of one setting from there.
    pub(super) fn take(&mut self, other: &Self, key: &str) {
        let setting = self.0.iter_mut().find(|setting| setting.key == key);
        if let (Some(setting), Some(others)) = (setting, other.get(key)) {
            setting.clone_from(others);
        }
    }

    /// The names of the settings that have other values there.
    #[must_use]
    pub fn changes(&self, other: &Self) -> Vec<&str> {
        let is_other =
            |setting: &&Setting| other.get(&setting.key).is_none_or(|others| others.values != setting.values);
        self.0.iter().filter(is_other).map(|setting| setting.key.as_str()).collect()
    }
}

impl Setting {
    fn of(arg: &Arg, matches: &ArgMatches, file: Option<&SettingsFile>) -> Option<Self> {
        let (key, id) = (arg.get_long()?, arg.get_id().as_str());
        // First: a command without this flag has no source either.
        let raw = matches.try_get_raw(id).ok()?.into_iter().flatten();
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => Source::Flag,
            Some(ValueSource::EnvVariable) => Source::Variable,
            _ => match file.and_then(|file| Some((file, file.get(key)?))) {
                Some((file, value)) => Source::File(file.path.clone(), value.line),
                None => Source::Default,
            },
        };
        let values: Vec<String> = raw.map(|value| without_secrets(&value.to_string_lossy())).collect();
        let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned());
        let is_default = defaults.collect::<Vec<_>>() == values;
        Some(Self {
            key: key.to_owned(),
            variable: variable(key),
            is_changed_limit: arg.get_help_heading() == Some(LIMITS) && !is_default,
            is_list: matches!(arg.get_action(), ArgAction::Append),
            values,
            source,
        })
    }
}

/// The environment variable of a setting.
pub(super) fn variable(key: &str) -> String {
    format!("X0_MSG_{}", key.to_uppercase().replace('-', "_"))
}

/// A value without the names, passwords and queries of its URLs, which may hold secrets.
fn without_secrets(value: &str) -> String {
    let item = |item: &str| {
        let Some((scheme, rest)) = item.split_once("://") else { return item.to_owned() };
        let rest = rest.rsplit_once('@').map_or(rest.to_owned(), |(_, host)| format!("***@{host}"));
        let rest = rest.split_once('?').map_or(rest.clone(), |(path, _)| format!("{path}?***"));
        format!("{scheme}://{rest}")
    };
    value.split(',').map(item).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_what_may_be_secret() {
        for (value, shown) in [
            ("nats://u:p@a:4222,tls://b:4222", "nats://***@a:4222,tls://b:4222"),
            ("https://idp.example/keys?key=s3cret", "https://idp.example/keys?***"),
            ("https://u:p@idp.example/?a=b", "https://***@idp.example/?***"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
        ] {
            assert_eq!(without_secrets(value), shown);
        }
    }
}
