//! The process of an end, as the measurement sees it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child as Process, ChildStdin, Command as Program, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::talk::{Answer, Command, Setup, now};

/// How long an answer may take behind the moment that the command names.
const LIMIT: Duration = Duration::from_secs(40);
/// How long its end may take.
const END: Duration = Duration::from_secs(5);

/// A running end; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    name: &'static str,
    process: Process,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    until: u64,
}

impl Child {
    /// Starts one; `name` is for errors.
    ///
    /// # Errors
    /// When it cannot become what `setup` says.
    pub(crate) fn start(name: &'static str, setup: &Setup) -> Result<Self> {
        let mut process = Program::new(std::env::current_exe()?)
            .arg("end")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start the {name}"))?;
        let stdout = BufReader::new(process.stdout.take().context("its stdout")?);
        let (to, lines) = sync_channel(16);
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        let mut child = Self {
            name,
            stdin: process.stdin.take(),
            process,
            lines,
            until: 0,
        };
        child.write(setup)?;
        child.answer::<()>()?;
        Ok(child)
    }

    fn write(&mut self, what: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        let stdin = self.stdin.as_mut().context("its stdin")?;
        stdin
            .write_all(&line)
            .with_context(|| format!("tell the {}", self.name))
    }

    /// Tells it; the answer must be taken before the next.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn tell(&mut self, command: Command) -> Result<()> {
        self.until = match command {
            Command::Ask { until } => until,
            _ => 0,
        };
        self.write(&command)
    }

    /// Takes the answer.
    ///
    /// # Errors
    /// When there is none in time, or it is an error.
    pub(crate) fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let left = Duration::from_nanos(self.until.saturating_sub(now()));
        let line = self.lines.recv_timeout(left + LIMIT).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("the {} does not answer", self.name),
            RecvTimeoutError::Disconnected => anyhow!("the {} has ended: see above", self.name),
        })?;
        match serde_json::from_str(&line).with_context(|| format!("the {} says {line}", self.name))? {
            Answer::Done(value) => Ok(serde_json::from_value(value)?),
            Answer::Failed(text) => bail!("the {}: {text}", self.name),
        }
    }

    /// Both.
    ///
    /// # Errors
    /// As theirs.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, command: Command) -> Result<T> {
        self.tell(command)?;
        self.answer()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let start = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) {
            if start.elapsed() > END {
                let _ = self.process.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
