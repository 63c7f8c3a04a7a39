//! The file of settings (TOML). It knows what a file may hold, and not what the settings mean.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use toml::de::{DeTable, DeValue};

use crate::config::environment::nearest;
use crate::reload::read_text_file;

/// The file that is read where none is named, if it exists.
pub(super) const DEFAULT_PATH: &str = "/etc/x0-msg-server.toml";

/// The secrets by the names that somebody may try, and what holds them instead.
const SECRETS: [(&str, &str); 3] =
    [("token-secret", "token-key-file"), ("api-keys", "api-key-file"), ("nats-token", "nats-token-file")];

/// The settings in a file.
#[derive(Debug, Clone)]
pub(super) struct SettingsFile {
    pub(super) path: PathBuf,
    pub(super) values: Vec<FileValue>,
}

/// One setting in a file.
#[derive(Debug, Clone)]
pub(super) struct FileValue {
    /// Its name: that of its flag.
    pub(super) key: String,
    /// Its value as the flag would take it; each value of a list.
    pub(super) texts: Vec<String>,
    /// The number of its line.
    pub(super) line: usize,
}

impl SettingsFile {
    /// Reads a file, and parses each of its values as the flag of the same name would. `schema` has all flags.
    ///
    /// # Errors
    /// All that is wrong with it: each text names the file, the line and the setting.
    pub(super) fn read(path: &Path, schema: &Command) -> Result<Self, Vec<String>> {
        let text = read_text_file(path).map_err(|error| vec![format!("{}: {error}", path.display())])?;
        Self::parse(path, &text, schema)
    }

    fn parse(path: &Path, text: &str, schema: &Command) -> Result<Self, Vec<String>> {
        let line_of = |at: usize| text[..at].matches('\n').count() + 1;
        let table = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(span.start));
            vec![format!("{}:{line}: {}", path.display(), error.message())]
        })?;
        let (mut values, mut wrong) = (Vec::new(), Vec::new());
        for (key, value) in table.get_ref() {
            let (line, key) = (line_of(key.span().start), key.get_ref().as_ref());
            match setting(schema, key, value.get_ref()) {
                Ok(texts) => values.push(FileValue { key: key.to_owned(), texts, line }),
                Err(reason) => wrong.push((line, format!("{}:{line}: {key}: {reason}", path.display()))),
            }
        }
        if wrong.is_empty() {
            return Ok(Self { path: path.to_owned(), values });
        }
        wrong.sort();
        Err(wrong.into_iter().map(|(_, text)| text).collect())
    }

    /// The setting of this name.
    pub(super) fn get(&self, key: &str) -> Option<&FileValue> {
        self.values.iter().find(|value| value.key == key)
    }
}

/// Whether a flag is a setting that a file may hold.
pub(super) fn is_setting(arg: &Arg) -> bool {
    !matches!(arg.get_long(), None | Some("config" | "help" | "version"))
}

/// The value of a setting as its flag takes it.
fn setting(command: &Command, key: &str, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let Some(arg) = command.get_arguments().find(|arg| is_setting(arg) && arg.get_long() == Some(key)) else {
        return Err(unknown(command, key, value));
    };
    let texts = texts(arg, value)?;
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    for text in texts.iter().filter(|_| !is_switch) {
        if let Err(error) = command.clone().try_get_matches_from([format!("--{key}={text}")]) {
            return Err(format!("{text:?} {}", reason(&error)));
        }
    }
    Ok(texts)
}

fn texts(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        let text = value.as_bool().ok_or_else(|| "must be true or false".to_owned())?;
        return Ok(vec![text.to_string()]);
    }
    match value {
        DeValue::Array(items) if is_list => items.iter().map(|item| scalar(item.get_ref())).collect(),
        DeValue::Array(_) => Err("takes one value, not a list".to_owned()),
        value => scalar(value).map(|text| vec![text]),
    }
}

fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        // With another base or underscores, it is not what the flag takes.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| "is too large".to_owned()),
        other => Err(format!("must be a string or a number, not a TOML {}", other.type_str())),
    }
}

fn unknown(command: &Command, key: &str, value: &DeValue<'_>) -> String {
    let dashed = key.replace('_', "-");
    if let Some((_, file)) = SECRETS.iter().find(|(secret, _)| *secret == dashed) {
        return format!("secrets do not belong in this file; {file} names a file that holds one");
    }
    if key == "config" {
        return "a file names no other file".to_owned();
    }
    if value.is_table() {
        return "settings have no sections; write name = value, without a table".to_owned();
    }
    let known: Vec<&str> =
        command.get_arguments().filter(|arg| is_setting(arg)).filter_map(Arg::get_long).collect();
    match nearest(&dashed, known.iter().copied()) {
        Some(nearest) => format!("no setting has this name; {nearest} may be meant"),
        None => "no setting has this name; `x0-msg-server config print --defaults` lists all".to_owned(),
    }
}

/// Why a flag does not take a value, without the flag and the value.
fn reason(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue};
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => format!("must be one of {}", values.join(", ")),
        _ => "is no valid value".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::schema;

    fn parse(text: &str) -> Result<SettingsFile, Vec<String>> {
        SettingsFile::parse(Path::new("x.toml"), text, &schema())
    }

    #[test]
    fn values_are_taken_as_the_flags_take_them() {
        let file = parse(
            "# a comment\nlisten = 8080\npoll-timeout = \"20s\"\nmax-payload = 65_536\nmailbox-bytes = \"64MB\"\n\
             allow-origin = [\"https://a.example\", \"*\"]\nlegacy-allow-origin = []\nauth = \"token\"\n",
        )
        .unwrap();
        let texts = |key: &str| file.get(key).unwrap().texts.clone();
        assert_eq!((texts("listen"), texts("max-payload")), (vec!["8080".into()], vec!["65536".into()]));
        assert_eq!(texts("allow-origin"), ["https://a.example", "*"]);
        assert_eq!(texts("legacy-allow-origin"), [""; 0]);
        assert_eq!(file.get("poll-timeout").unwrap().line, 3);
        #[cfg(feature = "nats")]
        assert_eq!(parse("nats-create = true").unwrap().get("nats-create").unwrap().texts, ["true"]);
    }

    #[test]
    fn all_that_is_wrong_is_named_with_its_line() {
        let wrong = parse(
            "max-topics = 0\n\nauth = \"none\"\npol-timeout = \"1s\"\npoll_timeout = \"1s\"\n\
             poll-timeout = [\"1s\"]\nsomething-else = 1\nttl = 1.5\ntoken-secret = \"x\"\nconfig = \"y\"\n\
             allow-origin = \"https://*.example\"\n[limits]\nttl = \"1s\"\n",
        )
        .unwrap_err();
        let expected = [
            ("x.toml:1: max-topics: \"0\" ", "whole number above 0"),
            ("x.toml:3: auth: \"none\" ", "must be one of open, token"),
            ("x.toml:4: pol-timeout: ", "poll-timeout may be meant"),
            ("x.toml:5: poll_timeout: ", "poll-timeout may be meant"),
            ("x.toml:6: poll-timeout: ", "one value, not a list"),
            ("x.toml:7: something-else: ", "no setting has this name"),
            ("x.toml:8: ttl: ", "a string or a number"),
            ("x.toml:9: token-secret: ", "token-key-file names a file"),
            ("x.toml:10: config: ", "names no other file"),
            ("x.toml:11: allow-origin: \"https://*.example\" ", "cannot be *"),
            ("x.toml:12: limits: ", "no sections"),
        ];
        assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
        for (text, (begin, reason)) in wrong.iter().zip(expected) {
            assert!(text.starts_with(begin) && text.contains(reason), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_named_with_its_line() {
        let wrong = parse("auth = \"token\"\nlisten = :8080\n").unwrap_err();
        assert!(wrong[0].starts_with("x.toml:2: "), "{wrong:?}");
        let wrong = parse("auth = \"open\"\nauth = \"token\"\n").unwrap_err();
        assert!(wrong[0].starts_with("x.toml:2: "), "{wrong:?}");
    }
}
