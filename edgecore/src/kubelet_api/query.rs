//! Query strings, as kubelet reads them.

use std::time::Duration;

use http::StatusCode;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::answer::Refusal;
use super::logs::{LogOptions, Stream};

/// A parsed query: names may repeat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses what stands behind the question mark.
    pub fn parse(query: &str) -> Self {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        };
        Self(query.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All values of a name, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A switch: kubelet's own are `1`, the API server's are `true`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| !matches!(value.to_lowercase().as_str(), "0" | "false"))
    }

    fn number(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.get(name)
            .filter(|v| !v.is_empty())
            .map(|v| v.parse().map_err(|_| undecodable()))
            .transpose()
    }

    /// v1.PodLogOptions; `now` is what `sinceSeconds` counts from.
    ///
    /// # Errors
    /// kubelet's: 400 for what cannot be decoded, 422 for what makes no sense.
    pub fn log_options(&self, now: OffsetDateTime) -> Result<LogOptions, Refusal> {
        let tail = self
            .get("tail")
            .filter(|v| *v != "all")
            .map(|v| v.parse().map_err(|_| undecodable()))
            .transpose()?;
        let tail = tail.or(self.number("tailLines")?);
        let (limit, seconds) = (self.number("limitBytes")?, self.number("sinceSeconds")?);
        let time = self.get("sinceTime").filter(|v| !v.is_empty());
        let time = time
            .map(|v| OffsetDateTime::parse(v, &Rfc3339).map_err(|_| undecodable()))
            .transpose()?;
        let bad = tail.is_some_and(|n: i64| n < 0) || limit.is_some_and(|n| n < 1) || seconds.is_some_and(|n| n < 1);
        if bad || (seconds.is_some() && time.is_some()) {
            return Err(Refusal::text(
                StatusCode::UNPROCESSABLE_ENTITY,
                r#"{"message": "Invalid request."}"#,
            ));
        }
        let ago = |n: i64| now.checked_sub(Duration::from_secs(n.unsigned_abs()).try_into().ok()?);
        let stream = match self.get("stream") {
            None | Some("" | "All") => Stream::All,
            Some("Stdout") => Stream::Stdout,
            Some("Stderr") => Stream::Stderr,
            Some(other) => {
                return Err(Refusal::text(
                    StatusCode::BAD_REQUEST,
                    &format!("invalid stream type {other:?}"),
                ));
            }
        };
        Ok(LogOptions {
            follow: self.flag("follow"),
            previous: self.flag("previous"),
            timestamps: self.flag("timestamps"),
            since: time.or(seconds.and_then(ago)),
            tail_lines: tail.and_then(|n| u64::try_from(n).ok()),
            limit_bytes: limit.and_then(|n| u64::try_from(n).ok()),
            stream,
        })
    }

    /// Which streams an exec or attach wants, under kubelet's names and the API server's.
    ///
    /// # Errors
    /// 400 where it wants none.
    pub fn streams(&self) -> Result<cri::Streams, Refusal> {
        let either = |a: &str, b: &str| self.flag(a) || self.flag(b);
        let tty = self.flag("tty");
        let streams = cri::Streams {
            stdin: either("input", "stdin"),
            stdout: either("output", "stdout"),
            // A terminal has one output.
            stderr: either("error", "stderr") && !tty,
            tty,
        };
        if streams.stdin || streams.stdout || streams.stderr {
            Ok(streams)
        } else {
            Err(Refusal::text(
                StatusCode::BAD_REQUEST,
                "you must specify at least 1 of stdin, stdout, stderr",
            ))
        }
    }
}

fn undecodable() -> Refusal {
    Refusal::text(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#)
}

/// Undoes percent encoding and `+`; what is broken stays as it is.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options(query: &str) -> Result<LogOptions, Refusal> {
        Query::parse(query).log_options(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(100))
    }

    #[test]
    fn log_options_are_read_and_refused_as_kubelet_does() {
        let all =
            options("follow=true&tailLines=5&limitBytes=10&sinceSeconds=60&timestamps=true&previous=false").unwrap();
        assert!(all.follow && all.timestamps && !all.previous);
        assert_eq!((all.tail_lines, all.limit_bytes), (Some(5), Some(10)));
        assert_eq!(all.since, Some(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(40)));
        assert_eq!(options("tailLines=x").unwrap_err().status, StatusCode::BAD_REQUEST);
        for bad in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
        ] {
            assert_eq!(
                options(bad).unwrap_err().status,
                StatusCode::UNPROCESSABLE_ENTITY,
                "{bad}"
            );
        }
    }

    #[test]
    fn a_terminal_has_no_errors_of_its_own_and_nothing_is_too_little() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a%2Bb&input=1&output=1&error=1&tty=1");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a+b"]);
        let streams = query.streams().unwrap();
        assert!(streams.stdin && streams.stdout && streams.tty && !streams.stderr);
        assert!(Query::parse("command=sh").streams().is_err());
        assert!(Query::parse("stdout=true&stdin=false").streams().is_ok());
    }

    proptest! {
        #[test]
        fn mangled_queries_never_panic(text in ".{0,64}") {
            let query = Query::parse(&text);
            let _ = query.log_options(OffsetDateTime::UNIX_EPOCH);
            let _ = query.streams();
        }
    }
}
