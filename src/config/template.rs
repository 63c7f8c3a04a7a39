//! A file of settings with all of them, their meaning and their defaults.

use clap::{Arg, ArgAction};

use crate::config::file::is_setting;
use crate::config::load::schema;
use crate::config::sources::variable;

/// How long lines of comments may be, in bytes.
const WIDTH: usize = 100;

/// A file of settings (TOML) that sets each to its default. Settings without a fixed default are comments.
#[must_use]
pub fn template() -> String {
    let mut text = "# Settings of x0-msg-server, and their defaults. A flag of the same name, or the environment variable, \
                    overrides a line.\n"
        .to_owned();
    let command = schema();
    let mut heading = None;
    for arg in command.get_arguments().filter(|arg| is_setting(arg) && !arg.is_hide_set()) {
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            text += &format!("\n\n# ==== {} ====\n", heading.unwrap_or("Others"));
        }
        text += &describe(arg);
    }
    text
}

fn describe(arg: &Arg) -> String {
    let key = arg.get_long().unwrap_or_default();
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let choices: Vec<String> =
        arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    if !is_switch && !choices.is_empty() {
        help += &format!(": {}", choices.join(", "));
    }
    let mut text = format!("\n{}", comment(&format!("{help}. {}", variable(key))));
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    text += &match defaults.is_empty() {
        _ if is_switch => format!("{key} = false\n"),
        true if is_list => format!("{key} = []\n"),
        true => format!("# {key} =\n"),
        false => format!("{key} = {}\n", toml_value(&defaults, is_list)),
    };
    text
}

/// A value as TOML.
#[must_use]
pub(crate) fn toml_value(texts: &[String], is_list: bool) -> String {
    let scalar = |text: &String| match text.as_str() {
        "true" | "false" => text.clone(),
        number if number.parse::<i64>().is_ok_and(|parsed| parsed.to_string() == number) => text.clone(),
        // The escapes of JSON are among those of TOML.
        text => serde_json::Value::from(text).to_string(),
    };
    let texts: Vec<String> = texts.iter().map(scalar).collect();
    if is_list { format!("[{}]", texts.join(", ")) } else { texts.concat() }
}

/// A text as lines of comments.
fn comment(text: &str) -> String {
    let (mut lines, mut line) = (String::new(), "#".to_owned());
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            lines += &format!("{line}\n");
            line = "#".to_owned();
        }
        line += &format!(" {word}");
    }
    lines + &line + "\n"
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;
    use crate::config::{Config, Only, load};

    /// The settings of a file with this text.
    fn settings(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.toml");
        std::fs::write(&path, text).unwrap();
        let args = ["x0-msg-server".into(), "--config".into(), path.into_os_string()];
        let (only, _) = load::<Only>(args).unwrap();
        Config { file: None, ..only.config }
    }

    #[test]
    fn it_names_all_settings_and_parses_to_the_defaults() {
        let text = template();
        assert_eq!(format!("{:?}", settings(&text)), format!("{:?}", Config::default()));
        let schema = schema();
        for arg in schema.get_arguments().filter(|arg| is_setting(arg) && !arg.is_hide_set()) {
            let key = arg.get_long().unwrap();
            let is_line = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} ="));
            assert!(text.lines().any(is_line), "{key}");
        }
        assert!(text.lines().all(|line| line.len() <= WIDTH + 20), "{text}");
        // What it compares is not the same for all files.
        let other = settings(&text.replace("\"10s\"", "\"11s\""));
        assert_ne!(format!("{other:?}"), format!("{:?}", Config::default()));
        assert!(Only::from_arg_matches(&schema.get_matches_from([""; 0])).is_ok());
    }

    #[test]
    fn values_are_toml() {
        let value = |texts: &[&str], is_list| {
            toml_value(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), is_list)
        };
        assert_eq!(value(&["7"], false), "7");
        assert_eq!(value(&["007"], false), "\"007\"");
        assert_eq!(value(&["a\"b"], false), r#""a\"b""#);
        assert_eq!(value(&["*", "https://a.example"], true), r#"["*", "https://a.example"]"#);
        assert_eq!(value(&[], true), "[]");
    }
}
