//! `kedge-demo`: a tiny HTTP server to try a node with.
//!
//! - `GET /`: who answers (pod, node, greeting) · `GET /env`: the environment, secrets hidden
//! - `GET /healthz`: 200, or 503 while it is told to fail · `GET /readyz`: the same, for a probe of its own
//! - `POST /fail?seconds=N`: /healthz and /readyz fail for N seconds · `POST /exit?code=N`: the process ends
//!
//! Environment: `PORT` (8080), `GREETING`, `FAIL_AFTER_SECONDS` (/healthz fails from then on), `READY_AFTER_SECONDS`
//! (/readyz fails until then). The main thread waits for SIGTERM or SIGINT and ends at once; a thread answers each connection,
//! at most [`CONNECTIONS`] at a time; more are closed unanswered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

/// A test's load generator has fewer; each costs a thread.
const CONNECTIONS: usize = 64;
/// A request's line and headers.
const MAX_REQUEST: u64 = 16 * 1024;
/// A client that says nothing.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server knows.
#[derive(Debug)]
struct State {
    started: Instant,
    fail_after: Option<Duration>,
    ready_after: Duration,
    fail_until: Mutex<Option<Instant>>,
    connections: AtomicUsize,
}

impl State {
    fn told_to_fail(&self, now: Instant) -> bool {
        let until = *self
            .fail_until
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        until.is_some_and(|until| now < until)
    }

    fn healthy(&self, now: Instant) -> bool {
        let old = self.fail_after.is_some_and(|after| now >= self.started + after);
        !old && !self.told_to_fail(now)
    }

    fn ready(&self, now: Instant) -> bool {
        now >= self.started + self.ready_after && !self.told_to_fail(now)
    }
}

/// An answer: status line's rest and body.
type Answer = (&'static str, String);

fn seconds(name: &str) -> Option<Duration> {
    std::env::var(name).ok()?.parse().ok().map(Duration::from_secs)
}

/// The value of `key` in a query.
fn parameter(query: &str, key: &str) -> Option<u64> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(k, _)| *k == key)?.1.parse().ok()
}

/// Who answers.
fn root() -> String {
    let get = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    format!(
        "{} from {} on node {}\n",
        get("GREETING", "Hello"),
        get("POD_NAME", &get("HOSTNAME", "a pod")),
        get("NODE_NAME", "(unknown)")
    )
}

/// The environment, without the values of what sounds secret.
fn environment(vars: impl Iterator<Item = (String, String)>) -> String {
    let mut lines: Vec<String> = vars
        .map(|(name, value)| {
            let secret = ["PASSWORD", "SECRET", "TOKEN", "KEY"]
                .iter()
                .any(|word| name.contains(word));
            if secret {
                format!("{name}=({} bytes)\n", value.len())
            } else {
                format!("{name}={value}\n")
            }
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// The answer to one request, and the code to exit with when the process was told to.
fn answer(state: &State, now: Instant, method: &str, target: &str) -> (Answer, Option<u8>) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let probe = |ok: bool| {
        if ok {
            ("200 OK", "ok\n".to_owned())
        } else {
            ("503 Service Unavailable", "told to fail\n".to_owned())
        }
    };
    let answer = match (method, path) {
        ("GET" | "HEAD", "/") => ("200 OK", root()),
        ("GET" | "HEAD", "/env") => ("200 OK", environment(std::env::vars())),
        ("GET" | "HEAD", "/healthz") => probe(state.healthy(now)),
        ("GET" | "HEAD", "/readyz") => probe(state.ready(now)),
        ("POST", "/fail") => {
            let length = Duration::from_secs(parameter(query, "seconds").unwrap_or(60).min(86_400));
            *state
                .fail_until
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(now + length);
            ("200 OK", format!("failing for {} s\n", length.as_secs()))
        }
        ("POST", "/exit") => {
            let code = parameter(query, "code")
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(1);
            return (("200 OK", format!("exiting with {code}\n")), Some(code));
        }
        (_, "/" | "/env" | "/healthz" | "/readyz" | "/fail" | "/exit") => {
            ("405 Method Not Allowed", "no such method here\n".to_owned())
        }
        _ => (
            "404 Not Found",
            "there are /, /env, /healthz, /readyz, /fail and /exit\n".to_owned(),
        ),
    };
    (answer, None)
}

/// Reads one request and answers it; the connection is closed after it.
fn serve(state: &State, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut reader = BufReader::new((&stream).take(MAX_REQUEST));
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut words = first.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let ((status, body), exit) = answer(state, Instant::now(), method, target);
    let body_sent = if method == "HEAD" { "" } else { body.as_str() };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body_sent}",
        body.len()
    )?;
    println!("{method} {target} {status}");
    if let Some(code) = exit {
        std::process::exit(code.into());
    }
    Ok(())
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for stream in listener.incoming().flatten() {
        if state.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
            state.connections.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let state = Arc::clone(state);
        std::thread::spawn(move || {
            if let Err(error) = serve(&state, stream) {
                eprintln!("connection: {error}");
            }
            state.connections.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

fn main() -> ExitCode {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    if let Err(error) = signals.thread_block() {
        eprintln!("kedge-demo: block signals: {error}");
        return ExitCode::FAILURE;
    }
    let port = std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(8080_u16);
    let listener = match TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("kedge-demo: listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let state = Arc::new(State {
        started: Instant::now(),
        fail_after: seconds("FAIL_AFTER_SECONDS"),
        ready_after: seconds("READY_AFTER_SECONDS").unwrap_or_default(),
        fail_until: Mutex::new(None),
        connections: AtomicUsize::new(0),
    });
    println!("kedge-demo {} listens on port {port}", env!("CARGO_PKG_VERSION"));
    std::thread::spawn(move || accept(&listener, &state));
    match signals.wait() {
        Ok(signal) => {
            println!("{signal}: bye");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kedge-demo: wait for a signal: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            started: Instant::now(),
            fail_after: None,
            ready_after: Duration::from_secs(5),
            fail_until: Mutex::new(None),
            connections: AtomicUsize::new(0),
        }
    }

    #[test]
    fn it_fails_for_as_long_as_it_is_told() {
        let state = state();
        let at = |s| state.started + Duration::from_secs(s);
        let status = |s, method, target| answer(&state, at(s), method, target).0.0;
        assert_eq!(status(1, "GET", "/healthz"), "200 OK");
        assert_eq!(status(1, "GET", "/readyz"), "503 Service Unavailable");
        assert_eq!(status(6, "GET", "/readyz"), "200 OK");
        assert_eq!(status(10, "POST", "/fail?seconds=20"), "200 OK");
        assert_eq!(status(29, "GET", "/healthz"), "503 Service Unavailable");
        assert_eq!(status(30, "GET", "/healthz"), "200 OK");
    }

    #[test]
    fn exit_has_a_code_and_what_is_unknown_is_told() {
        let state = state();
        assert_eq!(answer(&state, state.started, "POST", "/exit?code=7").1, Some(7));
        assert_eq!(
            answer(&state, state.started, "GET", "/exit").0.0,
            "405 Method Not Allowed"
        );
        assert_eq!(answer(&state, state.started, "GET", "/nothing").0.0, "404 Not Found");
    }

    #[test]
    fn values_that_sound_secret_are_hidden() {
        let vars = [("A", "1"), ("DB_PASSWORD", "anchor")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(environment(vars.into_iter()), "A=1\nDB_PASSWORD=(6 bytes)\n");
    }
}
