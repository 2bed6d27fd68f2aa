//! Label selectors: `a=b,c in (d,e),!f`, and the objects that specs hold.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::kinds::fields::{is_label_value, is_qualified_name};
use crate::object;
use crate::status::Status;
use crate::store::Stored;

/// Selects objects by their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    /// None: nothing is selected.
    requirements: Option<Vec<Requirement>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl Default for Labels {
    fn default() -> Self {
        Self {
            requirements: Some(Vec::new()),
        }
    }
}

impl Labels {
    /// Reads the query parameter `labelSelector`.
    ///
    /// # Errors
    /// 400 with the real server's words.
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        let requirements = Parser::new(text).parse().map_err(Status::bad_request)?;
        Ok(Self {
            requirements: Some(requirements),
        })
    }

    /// Reads a `metav1.LabelSelector`. Absent (null) it selects nothing, empty everything.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of_object(selector: &Value) -> Result<Self, String> {
        if selector.is_null() {
            return Ok(Self { requirements: None });
        }
        let mut requirements = Vec::new();
        let labels = selector.get("matchLabels").and_then(Value::as_object);
        for (key, value) in labels.into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::In, vec![value])?);
        }
        for expression in object::items(selector, "/matchExpressions") {
            let operator = match object::text(expression, "/operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values = object::items(expression, "/values").iter();
            let values = values.map(|v| v.as_str().unwrap_or_default().to_owned()).collect();
            requirements.push(Requirement::new(object::text(expression, "/key"), operator, values)?);
        }
        Ok(Self {
            requirements: Some(requirements),
        })
    }

    /// Whether it selects every object.
    pub(crate) fn is_empty(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether it selects `object`.
    pub(crate) fn matches(&self, object: &Stored) -> bool {
        self.matches_labels(&object.labels)
    }

    /// Whether it selects an object with these labels.
    pub(crate) fn matches_labels(&self, labels: &[(String, String)]) -> bool {
        self.holds(|key| labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()))
    }

    /// Whether it selects an object with this map of labels.
    pub(crate) fn matches_map(&self, labels: Option<&Value>) -> bool {
        self.holds(|key| labels?.get(key)?.as_str())
    }

    fn holds<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        let Some(requirements) = &self.requirements else {
            return false;
        };
        requirements.iter().all(|r| r.holds(value_of(&r.key)))
    }
}

impl Requirement {
    fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Self, String> {
        let mut wrong = Vec::new();
        if let Some(words) = key_is_wrong(key) {
            wrong.push(format!("key: {words}"));
        }
        let fault = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            _ => None,
        };
        if let Some(fault) = fault {
            wrong.push(format!("values: Invalid value: {}: {fault}", json!(values)));
        }
        let numbers = matches!(operator, Operator::GreaterThan | Operator::LessThan);
        for (index, value) in values.iter().enumerate() {
            if numbers && value.parse::<i64>().is_err() {
                let fault = "for 'Gt', 'Lt' operators, the value must be an integer";
                wrong.push(format!("values[{index}]: Invalid value: {value:?}: {fault}"));
            }
        }
        for (index, value) in values.iter().enumerate() {
            let faults = is_label_value(value);
            if !faults.is_empty() {
                let faults = faults.join("; ");
                wrong.push(format!("values[{index}][{key}]: Invalid value: {value:?}: {faults}"));
            }
        }
        match wrong.as_slice() {
            [] => Ok(Self {
                key: key.to_owned(),
                operator,
                values,
            }),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.compare(value, |value, bound| value > bound),
            Operator::LessThan => self.compare(value, |value, bound| value < bound),
        }
    }

    fn compare(&self, value: Option<&str>, holds: fn(i64, i64) -> bool) -> bool {
        let number = |text: &str| text.parse::<i64>().ok();
        match (value.and_then(number), self.values.first().and_then(|v| number(v))) {
            (Some(value), Some(bound)) => holds(value, bound),
            _ => false,
        }
    }
}

fn key_is_wrong(key: &str) -> Option<String> {
    let faults = is_qualified_name(key);
    (!faults.is_empty()).then(|| format!("Invalid value: {key:?}: {}", faults.join("; ")))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    End,
    Word,
    Symbol,
}

/// What was read, and from where.
#[derive(Debug, Clone, Copy)]
struct Item<'a> {
    token: Token,
    text: &'a str,
}

impl Item<'_> {
    fn is(self, symbol: &str) -> bool {
        self.token == Token::Symbol && self.text == symbol
    }
}

const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn tokens(text: &str) -> Vec<Item<'_>> {
    let space = [' ', '\t', '\r', '\n'];
    let mut items = Vec::new();
    let mut rest = text.trim_start_matches(space);
    while !rest.is_empty() {
        let symbol = SYMBOLS.iter().find(|s| rest.starts_with(**s));
        let (token, length) = match symbol {
            Some(symbol) => (Token::Symbol, symbol.len()),
            None => {
                let ends = |c: char| space.contains(&c) || "=!(),><".contains(c);
                (Token::Word, rest.find(ends).unwrap_or(rest.len()))
            }
        };
        let (text, tail) = rest.split_at(length);
        items.push(Item { token, text });
        rest = tail.trim_start_matches(space);
    }
    items
}

/// Reads requirements from left to right.
struct Parser<'a> {
    items: Vec<Item<'a>>,
    position: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            items: tokens(text),
            position: 0,
        }
    }

    fn peek(&self) -> Item<'a> {
        let end = Item {
            token: Token::End,
            text: "",
        };
        self.items.get(self.position).copied().unwrap_or(end)
    }

    fn take(&mut self) -> Item<'a> {
        let item = self.peek();
        self.position += 1;
        item
    }

    fn parse(mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        let first = self.peek();
        if first.token == Token::End {
            return Ok(requirements);
        }
        if first.token != Token::Word && !first.is("!") {
            return Err(format!(
                "found '{}', expected: !, identifier, or 'end of string'",
                first.text
            ));
        }
        loop {
            let requirement = self.requirement();
            requirements.push(requirement.map_err(|e| format!("unable to parse requirement: {e}"))?);
            let item = self.take();
            if item.token == Token::End {
                requirements.sort_by(|a, b| a.key.cmp(&b.key));
                return Ok(requirements);
            }
            if !item.is(",") {
                return Err(format!("found '{}', expected: ',' or 'end of string'", item.text));
            }
            let next = self.peek();
            if next.token != Token::Word && !next.is("!") {
                return Err(format!("found '{}', expected: identifier after ','", next.text));
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut item = self.take();
        let negated = item.is("!");
        if negated {
            item = self.take();
        }
        if item.token != Token::Word {
            return Err(format!("found '{}', expected: identifier", item.text));
        }
        let key = item.text;
        if let Some(words) = key_is_wrong(key) {
            return Err(format!("<nil>: {words}"));
        }
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        let next = self.peek();
        if next.token == Token::End || next.is(",") {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let (operator, many) = match self.take().text {
            "in" => (Operator::In, true),
            "notin" => (Operator::NotIn, true),
            "=" | "==" => (Operator::In, false),
            "!=" => (Operator::NotIn, false),
            ">" => (Operator::GreaterThan, false),
            "<" => (Operator::LessThan, false),
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = if many { self.values()? } else { vec![self.value()?] };
        Requirement::new(key, operator, values)
    }

    /// What follows `=`; nothing is "".
    fn value(&mut self) -> Result<String, String> {
        let item = self.peek();
        if item.token == Token::End || item.is(",") {
            return Ok(String::new());
        }
        self.position += 1;
        match item.token {
            Token::Word => Ok(item.text.to_owned()),
            _ => Err(format!("found '{}', expected: identifier", item.text)),
        }
    }

    /// `(a,b)`; nothing between commas is "".
    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.take();
        if !open.is("(") {
            return Err(format!("found '{}' expected: '('", open.text));
        }
        let first = self.peek();
        if first.token != Token::Word && !first.is(",") && !first.is(")") {
            return Err(format!("found '{}', expected: ',', ')' or identifier", first.text));
        }
        let mut values = BTreeSet::new();
        loop {
            let mut item = self.take();
            let word = if item.token == Token::Word { item.text } else { "" };
            values.insert(word.to_owned());
            if item.token == Token::Word {
                item = self.take();
                if !item.is(",") && !item.is(")") {
                    return Err(format!("found '{}', expected: ',' or ')'", item.text));
                }
            }
            if item.is(")") {
                return Ok(values.into_iter().collect());
            }
            if !item.is(",") {
                return Err(format!("found '{}', expected: ',', or identifier", item.text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: Vec<_> = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Labels::parse(selector).unwrap().matches_labels(&labels)
    }

    fn refusal(selector: &str) -> String {
        let status = Labels::parse(selector).unwrap_err();
        assert_eq!(status.code, 400);
        status.message
    }

    #[test]
    fn every_form_selects_what_it_says() {
        let web = [("app", "web"), ("tier", "3")];
        for selector in [
            "",
            "app=web",
            "app==web",
            "app = web , tier",
            "app!=db",
            "none!=x",
            "app in (web,db)",
            "app notin (db)",
            "none notin (x)",
            "app",
            "!none",
            "tier>2",
            "tier<4",
            "app in (in,web)",
        ] {
            assert!(selects(selector, &web), "{selector}");
        }
        for selector in [
            "app=db",
            "app!=web",
            "app in (db)",
            "app notin (web)",
            "none",
            "!app",
            "app=",
            "tier>3",
            "app>1",
            "app=web,tier=4",
        ] {
            assert!(!selects(selector, &web), "{selector}");
        }
        assert!(selects("app=", &[("app", "")]));
        assert!(selects("app in (,db)", &[("app", "")]));
        assert!(selects("in=in", &[("in", "in")]));
    }

    #[test]
    fn what_is_no_selector_is_refused_in_the_real_servers_words() {
        assert_eq!(
            refusal("a b"),
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"
        );
        assert_eq!(refusal("a=b c"), "found 'c', expected: ',' or 'end of string'");
        assert_eq!(refusal("a,"), "found '', expected: identifier after ','");
        assert_eq!(refusal("=a"), "found '=', expected: !, identifier, or 'end of string'");
        assert_eq!(
            refusal("a in b"),
            "unable to parse requirement: found 'b' expected: '('"
        );
        assert_eq!(
            refusal("a in (b"),
            "unable to parse requirement: found '', expected: ',' or ')'"
        );
        assert_eq!(
            refusal("/a=b"),
            "unable to parse requirement: <nil>: Invalid value: \"/a\": prefix part must be non-empty"
        );
        assert!(
            refusal("a=b@")
                .starts_with("unable to parse requirement: values[0][a]: Invalid value: \"b@\": a valid label")
        );
        assert_eq!(
            refusal("a>b"),
            "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer"
        );
    }

    #[test]
    fn a_selector_object_has_labels_and_expressions() {
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "gone", "operator": "DoesNotExist"},
            ],
        });
        let selector = Labels::of_object(&selector).unwrap();
        let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert!(selector.matches_labels(&[label("app", "web"), label("tier", "b")]));
        assert!(!selector.matches_labels(&[label("app", "web"), label("tier", "c")]));
        assert!(!selector.matches_labels(&[label("app", "web"), label("tier", "b"), label("gone", "")]));
    }

    #[test]
    fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
        assert!(!Labels::of_object(&Value::Null).unwrap().matches_labels(&[]));
        let all = Labels::of_object(&json!({})).unwrap();
        assert!(all.is_empty() && all.matches_labels(&[]));
        assert_eq!(
            Labels::of_object(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})).unwrap_err(),
            "\"Is\" is not a valid label selector operator"
        );
        assert_eq!(
            Labels::of_object(&json!({"matchExpressions": [{"key": "a", "operator": "In"}]})).unwrap_err(),
            "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"
        );
    }
}
