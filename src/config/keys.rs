//! What a configuration key is: its place, what it accepts, its default, what it is for, whether a reload changes it.
//!
//! Invariants: an accepted value is of the key's type and within its bounds; the key of a feature that is not built accepts its
//! default only. The keys themselves stand in [`super::table`]. This file knows no sources and no typed configuration.

use super::error::Problem;

/// One configuration key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `section.key`.
    pub path: &'static str,
    pub kind: Kind,
    pub default: Preset,
    /// What an operator has to know, in sentences.
    pub doc: &'static str,
    /// Whether SIGHUP changes it; else the gateway has to be restarted.
    pub hot: bool,
}

/// What a key accepts.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Bool,
    Int {
        min: u64,
        max: u64,
    },
    Choice(&'static [&'static str]),
    Text(Form),
    /// Text that is never shown.
    Secret(Form),
    /// An array of strings, or one string with commas between the items.
    List(Form),
    /// The key of a feature this version does not have: known, but only its default is accepted, so it is never ignored.
    NotBuilt,
}

/// What a piece of text has to look like.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Completes "expected ...".
    pub expected: &'static str,
    pub is_valid: fn(&str) -> bool,
}

/// A default as the table can hold it.
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    Bool(bool),
    Int(u64),
    Text(&'static str),
    List(&'static [&'static str]),
}

/// A value as it was written, with its TOML type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Bool(bool),
    Int(u64),
    Text(String),
    List(Vec<String>),
}

// === impl Key ===

impl Key {
    /// `pub` of `pub.addr`.
    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(section, _)| section)
    }

    /// `addr` of `pub.addr`.
    pub fn name(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(_, name)| name)
    }

    /// `KATEWAY_PUB__ADDR` of `pub.addr`.
    pub fn variable(&self) -> String {
        format!("KATEWAY_{}", self.path.replace('.', "__").to_ascii_uppercase())
    }

    /// Takes `value` as it stands in a file, or says what was expected.
    pub fn accept(&self, value: Value) -> Result<Value, Problem> {
        let (value, is_valid) = match (&self.kind, value) {
            (Kind::List(_), Value::Text(text)) => return self.accept(Value::List(split_list(&text))),
            (Kind::Bool, value @ Value::Bool(_)) => (value, true),
            (Kind::Int { min, max }, Value::Int(n)) => (Value::Int(n), (*min..=*max).contains(&n)),
            (Kind::Choice(of), Value::Text(text)) => {
                let is_valid = of.contains(&text.as_str());
                (Value::Text(text), is_valid)
            }
            (Kind::Text(form) | Kind::Secret(form), Value::Text(text)) => {
                let is_valid = (form.is_valid)(&text);
                (Value::Text(text), is_valid)
            }
            (Kind::List(form), Value::List(items)) => {
                let is_valid = items.iter().all(|item| (form.is_valid)(item));
                (Value::List(items), is_valid)
            }
            (Kind::NotBuilt, value) if value == self.default.to_value() => (value, true),
            (Kind::NotBuilt, _) => return Err(Problem::NotBuilt),
            (_, value) => (value, false),
        };
        if is_valid { Ok(value) } else { Err(Problem::Expected(self.expected())) }
    }

    /// Takes `text` as it stands in a variable or on the command line, where everything is text.
    pub fn accept_text(&self, text: &str) -> Result<Value, Problem> {
        let expected = || Problem::Expected(self.expected());
        let value = match self.kind {
            Kind::Bool => Value::Bool(text.parse().map_err(|_| expected())?),
            Kind::Int { .. } => Value::Int(text.replace('_', "").parse().map_err(|_| expected())?),
            Kind::Choice(_) | Kind::Text(_) | Kind::Secret(_) | Kind::List(_) | Kind::NotBuilt => {
                Value::Text(text.to_owned())
            }
        };
        self.accept(value)
    }

    /// A value of it as it may be shown: a secret that is set is not.
    pub fn shown(&self, value: &Value) -> String {
        let is_hidden = matches!(self.kind, Kind::Secret(_)) && *value != self.default.to_value();
        if is_hidden { "\"***\"".to_owned() } else { value.to_toml() }
    }

    /// Completes "expected ...".
    pub fn expected(&self) -> String {
        match &self.kind {
            Kind::Bool => "true or false".to_owned(),
            Kind::Int { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Choice(of) => format!("one of `{}`", of.join("`, `")),
            Kind::Text(form) | Kind::Secret(form) => form.expected.to_owned(),
            Kind::List(form) => format!("a list, each item {}", form.expected),
            Kind::NotBuilt => "nothing yet".to_owned(),
        }
    }
}

// === impl Preset ===

impl Preset {
    pub fn to_value(self) -> Value {
        match self {
            Self::Bool(on) => Value::Bool(on),
            Self::Int(n) => Value::Int(n),
            Self::Text(text) => Value::Text(text.to_owned()),
            Self::List(items) => Value::List(items.iter().map(|&item| item.to_owned()).collect()),
        }
    }
}

/// The items of `a,b`; none of empty text.
fn split_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::table::find, *};

    #[test]
    fn text_is_read_by_the_key_s_kind() {
        let read = |path, text| find(path).expect("the path is in the table").accept_text(text).ok();
        assert_eq!(read("pub.deadline_ms", "2_000"), Some(Value::Int(2_000)));
        assert_eq!(read("pub.deadline_ms", "2s"), None);
        assert_eq!(read("pub.deadline_ms", "1499"), None);
        assert_eq!(read("shard.pin", "false"), Some(Value::Bool(false)));
        assert_eq!(read("shard.pin", "no"), None);
        assert_eq!(read("kafka.brokers", "a:1, [::1]:2"), Some(Value::List(vec!["a:1".into(), "[::1]:2".into()])));
        assert_eq!(read("kafka.brokers", "a:1,,b:2"), None);
        assert_eq!(read("tenancy.mode", "open"), Some(Value::Text("open".into())));
        assert_eq!(read("tenancy.mode", "file"), None);
    }
}
