//! A client of qemu-guest-agent: one JSON object a line on a unix socket.
//!
//! * every call has a deadline, and an answer at most [`MAX_ANSWER`] bytes;
//! * a connection begins with `guest-sync-delimited`, whose answer follows a byte 0xFF: what an earlier caller left is skipped;
//! * after any error the connection is dropped, and the next call makes a new one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// More than any test's command says; the agent itself would hold 16 MiB.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// The agent answers within 0.1 s; a loaded machine and a guest that just starts need more.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A command in the guest is asked after this whether it has ended, and then ever more seldom: each question costs the guest some work.
const POLL: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_millis(500);

/// How a command in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i64>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// One guest's agent.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
    stream: Option<UnixStream>,
    /// Bytes that came after the last answer.
    rest: Vec<u8>,
    next_id: u64,
}

impl Agent {
    /// The agent behind qemu's socket `socket`; nothing is connected yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            stream: None,
            rest: Vec::new(),
            next_id: 1,
        }
    }

    /// Whether the agent answers within `within`.
    ///
    /// # Errors
    /// When it does not.
    pub fn ping(&mut self, within: Duration) -> Result<()> {
        self.call("guest-ping", &json!({}), Instant::now() + within).map(drop)
    }

    /// Runs `program` to its end.
    ///
    /// # Errors
    /// When the agent does not answer, or the command has not ended within `within`: it goes on then.
    pub fn exec(&mut self, program: &str, args: &[&str], within: Duration) -> Result<Ended> {
        let deadline = Instant::now() + within;
        let what = json!({"path": program, "arg": args, "capture-output": true});
        let started = self.call("guest-exec", &what, Instant::now() + ANSWER_WITHIN)?;
        let pid = started["pid"].as_i64().context("guest-exec gives a pid")?;
        let mut poll = POLL;
        loop {
            let status = self.call(
                "guest-exec-status",
                &json!({"pid": pid}),
                Instant::now() + ANSWER_WITHIN,
            )?;
            if status["exited"] == true {
                return ended(&status);
            }
            if Instant::now() > deadline {
                bail!("{program} {args:?} has not ended in the guest within {within:?}");
            }
            thread::sleep(poll);
            poll = (poll * 2).min(POLL_MAX);
        }
    }

    /// One command of the agent's own.
    ///
    /// # Errors
    /// When it does not answer in time, too much, or with an error.
    fn call(&mut self, command: &str, arguments: &Value, deadline: Instant) -> Result<Value> {
        let answer = self.try_call(command, arguments, deadline);
        if answer.is_err() {
            self.stream = None;
        }
        let answer = answer.with_context(|| format!("{command} of {}", self.socket.display()))?;
        if let Some(error) = answer.get("error") {
            bail!("{command}: {error}");
        }
        Ok(answer["return"].clone())
    }

    fn try_call(&mut self, command: &str, arguments: &Value, deadline: Instant) -> Result<Value> {
        if self.stream.is_none() {
            self.connect(deadline)?;
        }
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        self.write(format!("{line}\n").as_bytes(), deadline)?;
        let answer = self.line(deadline)?;
        serde_json::from_slice(&answer).with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&answer)))
    }

    fn connect(&mut self, deadline: Instant) -> Result<()> {
        self.stream = Some(UnixStream::connect(&self.socket).context("connect")?);
        self.rest.clear();
        let id = self.next_id;
        self.next_id += 1;
        // The first byte makes the agent drop half a line that another caller left.
        let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        let mut line = vec![0xff];
        line.extend(format!("{sync}\n").bytes());
        self.write(&line, deadline)?;
        loop {
            let line = self.line(deadline)?;
            let Some(start) = line.iter().rposition(|byte| *byte == 0xff) else {
                continue;
            };
            let answer: Value = serde_json::from_slice(&line[start + 1..]).unwrap_or_default();
            if answer["return"] == id {
                return Ok(());
            }
        }
    }

    fn write(&mut self, bytes: &[u8], deadline: Instant) -> Result<()> {
        let stream = self.stream.as_mut().context("connected")?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        stream.write_all(bytes).context("write")
    }

    /// The next line, without its end.
    fn line(&mut self, deadline: Instant) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                line.pop();
                return Ok(line);
            }
            if self.rest.len() > MAX_ANSWER {
                bail!("an answer of more than {MAX_ANSWER} bytes");
            }
            let stream = self.stream.as_mut().context("connected")?;
            stream.set_read_timeout(Some(left(deadline)?))?;
            let mut chunk = [0; 16 * 1024];
            match stream.read(&mut chunk) {
                Ok(0) => bail!("the connection ended"),
                Ok(n) => self.rest.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("no answer"),
            }
        }
    }
}

/// The time to `deadline`; a timeout of zero would mean none.
fn left(deadline: Instant) -> Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => bail!("no answer in time"),
    }
}

fn ended(status: &Value) -> Result<Ended> {
    let text = |field: &str| -> Result<String> {
        let bytes = STANDARD.decode(status[field].as_str().unwrap_or_default())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    for flag in ["out-truncated", "err-truncated"] {
        if status[flag] == true {
            bail!("{flag}");
        }
    }
    Ok(Ended {
        code: status["exitcode"].as_i64(),
        stdout: text("out-data")?,
        stderr: text("err-data")?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers each line by `answer`, connection after connection, until one of them is not wanted.
    fn serve(answer: impl Fn(&Value) -> Option<Vec<u8>> + Send + 'static) -> (tempfile::TempDir, Agent) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).split(b'\n');
                for line in lines {
                    let line = line.unwrap();
                    let start = line.iter().rposition(|b| *b == 0xff).map_or(0, |at| at + 1);
                    let asked: Value = serde_json::from_slice(&line[start..]).unwrap();
                    let Some(said) = answer(&asked) else { break };
                    // The client may have gone away.
                    let _ = stream.write_all(&said);
                }
            }
        });
        (folder, Agent::new(&socket))
    }

    fn synced(asked: &Value) -> Option<Vec<u8>> {
        (asked["execute"] == "guest-sync-delimited").then(|| {
            let mut said = b"{\"return\": \"of an earlier caller\"}\n\xff".to_vec();
            said.extend(format!("{{\"return\": {}}}\n", asked["arguments"]["id"]).bytes());
            said
        })
    }

    #[test]
    fn a_command_runs_to_its_end_and_its_output_comes_back() {
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let (_folder, mut agent) = serve(move |line| {
            synced(line).or_else(|| {
                let said = match line["execute"].as_str() {
                    Some("guest-exec") => json!({"return": {"pid": 7}}),
                    Some("guest-exec-status") if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 => {
                        json!({"return": {"exited": false}})
                    }
                    _ => json!({"return": {"exited": true, "exitcode": 3, "out-data": STANDARD.encode("hello")}}),
                };
                Some(format!("{said}\n").into_bytes())
            })
        });
        let ended = agent.exec("/bin/true", &[], Duration::from_secs(60)).unwrap();
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), "hello"));
    }

    #[test]
    fn an_answer_that_never_ends_and_one_that_never_comes_are_errors() {
        let (_folder, mut agent) = serve(|line| synced(line).or_else(|| Some(vec![b'x'; MAX_ANSWER + 64 * 1024])));
        let error = agent.ping(Duration::from_secs(60)).unwrap_err();
        assert!(format!("{error:#}").contains("more than"), "{error:#}");
        let (_folder, mut agent) = serve(|line| synced(line).or_else(|| Some(Vec::new())));
        let error = agent.ping(Duration::from_millis(200)).unwrap_err();
        assert!(format!("{error:#}").contains("no answer"), "{error:#}");
    }

    #[test]
    fn a_dropped_connection_is_made_again() {
        let (_folder, mut agent) = serve(|line| {
            synced(line).or_else(|| (line["execute"] == "guest-ping").then(|| b"{\"return\": {}}\n".to_vec()))
        });
        agent.exec("/bin/true", &[], Duration::from_secs(60)).unwrap_err();
        agent.ping(Duration::from_secs(60)).unwrap();
    }
}
