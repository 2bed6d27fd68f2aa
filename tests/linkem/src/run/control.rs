//! Commands as lines of text, one answer a line: `ok`, `error: …`, or a report.
//!
//! ```text
//! blackHole LINK | blackHoleUp LINK | blackHoleDown LINK | restore LINK | down LINK | up LINK
//! rebind LINK | readdress LINK | largest LINK BYTES
//! report      what happened so far, as JSON
//! stop        ends it
//! ```

use std::io::{self, BufRead, Read as _, Write};

use anyhow::Result;
use serde_json::{Value, json};

use super::Emulation;
use crate::Action;

/// The longest line that is read, in bytes.
const LONGEST: u64 = 4096;

#[derive(Debug, PartialEq)]
enum Command<'a> {
    Apply(Action, &'a str),
    Report,
    Stop,
}

/// Obeys the lines of `from`, until they or the emulation end.
///
/// # Errors
/// When reading or answering fails.
pub fn serve(emulation: &Emulation, mut from: impl BufRead, mut to: impl Write) -> io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if from.by_ref().take(LONGEST).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match parse(&line) {
            Ok(Command::Stop) => return writeln!(to, "ok"),
            Ok(Command::Report) => report(emulation),
            Ok(Command::Apply(action, link)) => emulation.apply(link, action).map(|()| "ok".to_owned()),
            Err(error) => Err(anyhow::Error::msg(error)),
        };
        match answer {
            Ok(text) => writeln!(to, "{text}")?,
            Err(error) => writeln!(to, "error: {}", format!("{error:#}").replace('\n', " "))?,
        }
        to.flush()?;
    }
}

fn report(emulation: &Emulation) -> Result<String> {
    Ok(serde_json::to_string(&emulation.report()?)?)
}

fn parse(line: &str) -> Result<Command<'_>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["report"] => Ok(Command::Report),
        ["stop"] => Ok(Command::Stop),
        // The same words as in a scenario's events.
        [action, link] => apply(action.into(), link),
        [action, link, number] => {
            let number: u64 = number.parse().map_err(|error| format!("{number}: {error}"))?;
            apply(json!({ action: number }), link)
        }
        _ => Err("a command is 'report', 'stop', or an action and a link".into()),
    }
}

fn apply(action: Value, link: &str) -> Result<Command<'_>, String> {
    let action = serde_json::from_value(action).map_err(|error| error.to_string())?;
    Ok(Command::Apply(action, link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_words_of_a_scenarios_events() {
        assert_eq!(parse("report\n"), Ok(Command::Report));
        assert_eq!(parse(" stop "), Ok(Command::Stop));
        assert_eq!(
            parse("blackHoleUp lte\n"),
            Ok(Command::Apply(Action::BlackHoleUp, "lte"))
        );
        let narrow = Command::Apply(Action::Largest(1280), "lte");
        assert_eq!(parse("largest lte 1280"), Ok(narrow));
        assert!(parse("largest lte few").unwrap_err().starts_with("few: "));
        assert!(parse("largest lte").is_err() && parse("rebind lte 7").is_err());
        assert!(parse("explode lte").unwrap_err().contains("blackHoleUp"));
        assert!(parse("down").unwrap_err().contains("an action and a link"));
    }
}
