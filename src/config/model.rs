//! What was written: every key with its value and where that value stands, after file, environment and command line.
//!
//! Precedence: command line over `KATEWAY_SECTION__KEY` over file over default; within one source the last wins. A value that
//! is overridden is checked all the same. Invariants: a [`Written`] holds a valid value for each key of the table; every
//! error of every source is reported, not only the first. This file knows the keys, not what they mean.

use std::path::{Path, PathBuf};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{ConfigError, Origin, Problem, nearest_path},
    keys::{Key, Kind, Value},
    table::{KEYS, SECTIONS, SHORT_FLAGS, find},
};

/// Where a configuration is read from.
#[derive(Clone, Default, Debug)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not start with `KATEWAY_` are passed over.
    pub env: Vec<(String, String)>,
    /// Paths (`pub.addr`) or short flags (`pub`) with their values.
    pub flags: Vec<(String, String)>,
}

/// One key's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    pub value: Value,
    pub origin: Origin,
}

/// Every key's value, in the order of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    settings: Vec<Setting>,
}

/// Splits `section.key=value` of `--set`; fit to be a command line value parser.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    let (path, value) = text.split_once('=').ok_or("expected section.key=value")?;
    Ok((path.trim().to_owned(), value.trim().to_owned()))
}

/// Reads all sources. The second part holds every error; what is in error keeps the value it had.
pub fn read(sources: &Sources) -> (Written, Vec<ConfigError>) {
    let mut reading = Reading { written: Written::defaults(), errors: Vec::new() };
    if let Some(file) = &sources.file {
        reading.file(file);
    }
    for (name, value) in &sources.env {
        reading.variable(name, value);
    }
    for (name, value) in &sources.flags {
        reading.flag(name, value);
    }
    (reading.written, reading.errors)
}

struct Reading {
    written: Written,
    errors: Vec<ConfigError>,
}

// === impl Sources ===

impl Sources {
    /// The file, this process's environment, and what the command line set.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        // A variable that is not UTF-8 can be none of ours.
        let env =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self { file, env: env.collect(), flags }
    }
}

// === impl Written ===

impl Written {
    pub fn defaults() -> Self {
        let setting = |key: &Key| Setting { value: key.default.to_value(), origin: Origin::Default };
        Self { settings: KEYS.iter().map(setting).collect() }
    }

    /// Keys with their settings, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Key, &Setting)> {
        KEYS.iter().zip(&self.settings)
    }

    /// The setting of a key that is in the table.
    pub fn setting(&self, path: &str) -> &Setting {
        self.iter()
            .find(|(key, _)| key.path == path)
            .map(|(_, setting)| setting)
            .expect("code asks for keys of the table only")
    }

    pub fn bool(&self, path: &str) -> bool {
        matches!(self.setting(path).value, Value::Bool(true))
    }

    pub fn int(&self, path: &str) -> u64 {
        match self.setting(path).value {
            Value::Int(n) => n,
            ref other => unreachable!("{path} is a number by the table, not {other:?}"),
        }
    }

    pub fn text(&self, path: &str) -> &str {
        match &self.setting(path).value {
            Value::Text(text) => text,
            other => unreachable!("{path} is text by the table, not {other:?}"),
        }
    }

    pub fn list(&self, path: &str) -> &[String] {
        match &self.setting(path).value {
            Value::List(items) => items,
            other => unreachable!("{path} is a list by the table, not {other:?}"),
        }
    }

    /// Takes the settings of `newer` whose keys are hot.
    pub fn take_hot(&mut self, newer: &Self) {
        for ((key, new), setting) in newer.iter().zip(&mut self.settings) {
            if key.hot {
                setting.clone_from(new);
            }
        }
    }

    fn set(&mut self, key: &Key, setting: Setting) {
        if let Some(slot) = KEYS.iter().position(|other| other.path == key.path) {
            self.settings[slot] = setting;
        }
    }
}

// === impl Reading ===

impl Reading {
    fn file(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let origin = Origin::File { file: path.display().to_string(), line: 0 };
                self.refuse("", None, origin, Problem::File(format!("cannot be read: {error}")));
                return;
            }
        };
        let file = TomlFile { name: path.display().to_string(), text: &text };
        let (root, errors) = DeTable::parse_recoverable(&text);
        for error in &errors {
            let origin = file.at(error.span().map_or(0, |span| span.start));
            self.refuse("", None, origin, Problem::File(format!("is not TOML: {}", error.message())));
        }
        // What a parser recovered from broken text is a guess: no second error is made of it.
        if errors.is_empty() {
            self.table(&file, "", root.get_ref());
        }
    }

    fn table(&mut self, file: &TomlFile<'_>, above: &str, table: &DeTable<'_>) {
        for (name, item) in table {
            let path =
                if above.is_empty() { name.get_ref().to_string() } else { format!("{above}.{}", name.get_ref()) };
            match (item.get_ref(), find(&path)) {
                (DeValue::Table(inner), None) if !inner.is_empty() => self.table(file, &path, inner),
                (value, None) if is_section(&path) => {
                    if !value.is_table() {
                        let problem = Problem::Expected(format!("a section, `[{path}]`"));
                        self.refuse(&path, Some(file.written(item)), file.at(item.span().start), problem);
                    }
                }
                (_, None) => {
                    let near = nearest_path(&path).map(str::to_owned);
                    self.refuse(&path, None, file.at(name.span().start), Problem::Unknown { near });
                }
                (value, Some(key)) => {
                    let origin = file.at(item.span().start);
                    let taken = value_of(value).ok_or_else(|| Problem::Expected(key.expected()));
                    self.take(key, file.written(item), origin, taken.and_then(|value| key.accept(value)));
                }
            }
        }
    }

    fn variable(&mut self, name: &str, text: &str) {
        let Some(rest) = name.strip_prefix("KATEWAY_") else { return };
        let origin = Origin::Variable(name.to_owned());
        let path = rest.to_ascii_lowercase().replace("__", ".");
        if let Some(key) = find(&path) {
            self.take(key, text.to_owned(), origin, key.accept_text(text));
            return;
        }
        // Without a section it is not ours (Kubernetes sets KATEWAY_PORT for a service of our name), unless it is a key but for
        // an underscore.
        let squashed = |text: &str| text.replace(['.', '_'], "");
        let near = if path.contains('.') {
            nearest_path(&path).and_then(find)
        } else {
            match KEYS.iter().find(|key| squashed(key.path) == squashed(&path)) {
                None => return,
                key => key,
            }
        };
        self.refuse(name, None, Origin::Default, Problem::Unknown { near: near.map(Key::variable) });
    }

    fn flag(&mut self, name: &str, text: &str) {
        let path = SHORT_FLAGS.iter().find(|(short, _)| *short == name).map_or(name, |(_, path)| path);
        let Some(key) = find(path) else {
            let near = nearest_path(path).map(str::to_owned);
            self.refuse(path, None, Origin::CommandLine, Problem::Unknown { near });
            return;
        };
        self.take(key, text.to_owned(), Origin::CommandLine, key.accept_text(text));
    }

    fn take(&mut self, key: &Key, written: String, origin: Origin, taken: Result<Value, Problem>) {
        match taken {
            Ok(value) => self.written.set(key, Setting { value, origin }),
            // A key that is not built yet may be a secret as well.
            Err(problem) if matches!(key.kind, Kind::Secret(_) | Kind::NotBuilt) => {
                self.refuse(key.path, None, origin, problem);
            }
            Err(problem) => self.refuse(key.path, Some(written), origin, problem),
        }
    }

    fn refuse(&mut self, path: &str, value: Option<String>, origin: Origin, problem: Problem) {
        self.errors.push(ConfigError { path: path.to_owned(), value, origin, problem });
    }
}

/// A file's name and text, to turn byte positions into lines.
struct TomlFile<'a> {
    name: String,
    text: &'a str,
}

impl TomlFile<'_> {
    fn at(&self, byte: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(byte);
        Origin::File { file: self.name.clone(), line: 1 + before.filter(|&&b| b == b'\n').count() }
    }

    /// The value as the operator wrote it, on one line.
    fn written(&self, item: &Spanned<DeValue<'_>>) -> String {
        let text = self.text.get(item.span()).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn is_section(path: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == path)
}

/// The value, if it is of a type that any key takes.
fn value_of(value: &DeValue<'_>) -> Option<Value> {
    match value {
        DeValue::Boolean(on) => Some(Value::Bool(*on)),
        DeValue::Integer(n) => u64::from_str_radix(n.as_str(), n.radix()).ok().map(Value::Int),
        DeValue::String(text) => Some(Value::Text(text.to_string())),
        DeValue::Array(items) => {
            items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect::<Option<_>>().map(Value::List)
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}
