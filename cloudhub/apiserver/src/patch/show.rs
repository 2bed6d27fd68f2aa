//! Values as Go prints them with `%v`: they stand so in the real server's messages.

use serde_json::{Map, Value};

/// Longer ones are cut: a patch may have megabytes.
const LONGEST: usize = 4096;

/// `map[a:1 b:[x y]]`.
pub(super) fn show(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    if out.len() > LONGEST {
        let end = (0..=LONGEST)
            .rev()
            .find(|i| out.is_char_boundary(*i))
            .unwrap_or_default();
        out.truncate(end);
        out.push('…');
    }
    out
}

/// The same of a map.
pub(super) fn show_map(fields: &Map<String, Value>) -> String {
    show(&Value::Object(fields.clone()))
}

fn write(value: &Value, out: &mut String) {
    if out.len() > LONGEST {
        return;
    }
    match value {
        Value::Null => out.push_str("<nil>"),
        Value::String(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push(' ');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            out.push_str("map[");
            for (number, name) in names.into_iter().enumerate() {
                if number > 0 {
                    out.push(' ');
                }
                out.push_str(name);
                out.push(':');
                write(&fields[name], out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// The type of a value, as Go prints it.
pub(super) fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
