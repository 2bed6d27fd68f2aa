//! Reads containers' log files as kubelet does: CRI's line format, tail, since, limit, timestamps, and following over rotation to the
//! container's end.
//!
//! A line is `2016-10-06T00:17:09.669794202Z stdout F text`; `P` instead of `F` is a part of a line that the runtime split. The reader is
//! pulled: [`LogReader::next`] gives the next piece of output, so a slow client costs one buffer. A line that cannot be parsed is skipped, and one
//! of more than a mebibyte (the runtime splits at 16 KiB) is no log line and is skipped too.

use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::{ContainerState, ErrorKind, Runtime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// What is read at once, and what a piece of output has at most, but for one line.
const CHUNK: usize = 32 * 1024;
/// The longest line that is one.
const MAX_LINE: usize = 1 << 20;
/// How often a followed file is looked at: what a person at a terminal does not notice.
const POLL: Duration = Duration::from_millis(100);
/// How often the runtime is asked whether the followed container still runs: it is told of by its log's silence otherwise.
const ASK: Duration = Duration::from_secs(1);

/// Which of a container's streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stream {
    /// Both.
    #[default]
    All,
    /// Its output.
    Stdout,
    /// Its errors.
    Stderr,
}

/// v1.PodLogOptions, with `sinceSeconds` made a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// The container before this one.
    pub previous: bool,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Nothing older than this.
    pub since: Option<OffsetDateTime>,
    /// This many lines from the end.
    pub tail_lines: Option<u64>,
    /// This many bytes at most.
    pub limit_bytes: Option<u64>,
    /// Which stream.
    pub stream: Stream,
}

/// One parsed line of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// When.
    pub time: OffsetDateTime,
    /// Standard error rather than output.
    pub stderr: bool,
    /// A part of a line that goes on in the next.
    pub partial: bool,
    /// The text, with its line end unless it is partial.
    pub text: &'a [u8],
}

/// Parses a line of CRI's log format, with its line end; None where it is none.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut words = line.splitn(4, |&b| b == b' ');
    let time = OffsetDateTime::parse(std::str::from_utf8(words.next()?).ok()?, &Rfc3339).ok()?;
    let stderr = match words.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // Tags are separated by colons; the first says whether the line is whole.
    let partial = words.next()?.split(|&b| b == b':').next()? == b"P";
    let mut text = words.next()?;
    if partial {
        text = text.strip_suffix(b"\n").unwrap_or(text);
    }
    Some(Line {
        time,
        stderr,
        partial,
        text,
    })
}

/// The time as kubelet puts it before a line: nine digits of nanoseconds.
fn stamp(time: OffsetDateTime) -> String {
    let (h, m, s) = time.offset().as_hms();
    let zone = if (h, m, s) == (0, 0, 0) {
        "Z".to_owned()
    } else {
        let sign = if time.offset().is_negative() { '-' } else { '+' };
        format!("{sign}{:02}:{:02}", h.unsigned_abs(), m.unsigned_abs())
    };
    let (date, clock) = (time.date(), time.time());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let (hour, minute, second, nano) = clock.as_hms_nano();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nano:09}{zone} ")
}

/// Turns lines into output. No files, no clock.
#[derive(Debug)]
pub struct Formatter {
    options: LogOptions,
    lines_left: Option<u64>,
    bytes_left: u64,
    at_line_start: bool,
}

impl Formatter {
    /// A formatter at the start of a log.
    pub fn new(options: LogOptions) -> Self {
        Self {
            // With follow the tail only says where to start.
            lines_left: options.tail_lines.filter(|_| !options.follow),
            bytes_left: options.limit_bytes.unwrap_or(u64::MAX),
            at_line_start: true,
            options,
        }
    }

    /// Whether all that was asked for is out.
    pub fn done(&self) -> bool {
        self.bytes_left == 0 || self.lines_left == Some(0)
    }

    /// Takes a line of the file, puts what comes of it into `out`.
    pub fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(line) else { return };
        if self.done() {
            return;
        }
        let start = std::mem::replace(
            &mut self.at_line_start,
            line.text.is_empty() || line.text.ends_with(b"\n"),
        );
        self.lines_left = self.lines_left.map(|left| left - 1);
        let old = self.options.since.is_some_and(|since| line.time < since);
        let other = matches!(
            (self.options.stream, line.stderr),
            (Stream::Stdout, true) | (Stream::Stderr, false)
        );
        if old || other {
            return;
        }
        if self.options.timestamps && start {
            self.put(stamp(line.time).as_bytes(), out);
        }
        self.put(line.text, out);
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let some = usize::try_from(self.bytes_left).unwrap_or(usize::MAX).min(bytes.len());
        out.extend_from_slice(&bytes[..some]);
        self.bytes_left -= some as u64;
    }
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to open log file {path:?}: {source}")]
pub struct LogError {
    path: PathBuf,
    source: std::io::Error,
}

/// Reads one container's log.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: File,
    inode: u64,
    formatter: Formatter,
    follow: Option<Followed>,
    /// What was read and is no whole line yet.
    rest: Vec<u8>,
    /// Inside a line that is too long.
    skipping: bool,
    ended: bool,
}

/// The container that is followed.
#[derive(Debug)]
struct Followed {
    runtime: Arc<dyn Runtime>,
    id: String,
    asked: Option<tokio::time::Instant>,
    running: bool,
}

impl LogReader {
    /// Opens the log at `path` of container `id` and finds where to start.
    ///
    /// # Errors
    /// When the file cannot be opened or read.
    pub async fn open(path: &Path, id: &str, options: LogOptions, runtime: Arc<dyn Runtime>) -> Result<Self, LogError> {
        Self::start(path, id, options, runtime)
            .await
            .map_err(|source| LogError {
                path: path.to_owned(),
                source,
            })
    }

    async fn start(path: &Path, id: &str, options: LogOptions, runtime: Arc<dyn Runtime>) -> std::io::Result<Self> {
        let mut file = File::open(path).await?;
        let inode = file.metadata().await?.ino();
        if let Some(tail) = options.tail_lines {
            let start = tail_start(&mut file, tail).await?;
            file.seek(SeekFrom::Start(start)).await?;
        }
        let follow = options.follow.then(|| Followed {
            runtime,
            id: id.to_owned(),
            asked: None,
            running: true,
        });
        let formatter = Formatter::new(options);
        Ok(Self {
            path: path.to_owned(),
            file,
            inode,
            formatter,
            follow,
            rest: Vec::new(),
            skipping: false,
            ended: false,
        })
    }

    /// The next piece of output; None at the end. An error in the middle of a log ends it.
    pub async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() && !self.ended && !self.formatter.done() {
            match self.read().await {
                Ok(0) => self.at_end(&mut out).await,
                Ok(_) => self.lines(&mut out),
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "cannot read a log further");
                    self.ended = true;
                }
            }
        }
        (!out.is_empty()).then(|| Bytes::from(out))
    }

    async fn read(&mut self) -> std::io::Result<usize> {
        let mut chunk = vec![0; CHUNK];
        let n = self.file.read(&mut chunk).await?;
        self.rest.extend_from_slice(&chunk[..n]);
        Ok(n)
    }

    /// Formats the whole lines of what was read.
    fn lines(&mut self, out: &mut Vec<u8>) {
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|&b| b == b'\n') {
            let line = &self.rest[start..=start + length];
            if !std::mem::take(&mut self.skipping) {
                self.formatter.line(line, out);
            }
            start += length + 1;
        }
        self.rest.drain(..start);
        if self.rest.len() > MAX_LINE {
            self.rest.clear();
            self.skipping = true;
        }
    }

    /// At the end of the file: the end, or a rotated file, or a wait.
    async fn at_end(&mut self, out: &mut Vec<u8>) {
        let Some(follow) = &mut self.follow else {
            return self.end(out);
        };
        if !follow.running {
            return self.end(out);
        }
        // The new file is there when the runtime writes to it: then the old one has all that it will ever have.
        if let Ok(there) = tokio::fs::metadata(&self.path).await
            && there.ino() != self.inode
        {
            return self.rotate(out).await;
        }
        follow.ask().await;
        if follow.running {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Reads what is left of the renamed file, then opens the new one.
    async fn rotate(&mut self, out: &mut Vec<u8>) {
        while let Ok(1..) = self.read().await {
            self.lines(out);
        }
        self.rest.clear();
        self.skipping = false;
        match File::open(&self.path).await {
            Ok(file) => {
                // A file that cannot be looked at is taken as another one and looked at again.
                self.inode = file.metadata().await.map_or(0, |m| m.ino());
                self.file = file;
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }

    /// The last line may lack its end, when the container was killed in the middle of it.
    fn end(&mut self, out: &mut Vec<u8>) {
        if !self.rest.is_empty() && !self.skipping {
            let rest = std::mem::take(&mut self.rest);
            self.formatter.line(&rest, out);
        }
        self.ended = true;
    }
}

impl Followed {
    /// Asks the runtime, not too often. One that does not answer is no reason to stop.
    async fn ask(&mut self) {
        let now = tokio::time::Instant::now();
        if self.asked.is_some_and(|at| now.duration_since(at) < ASK) {
            return;
        }
        self.asked = Some(now);
        self.running = match self.runtime.container_status(&self.id).await {
            Ok(status) => status.state == ContainerState::Running,
            Err(error) => matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Deadline),
        };
    }
}

/// Where the last `lines` lines begin; an incomplete last line is not counted.
async fn tail_start(file: &mut File, lines: u64) -> std::io::Result<u64> {
    const BLOCK: u64 = 4096;
    let mut right = file.seek(SeekFrom::End(0)).await?;
    let mut seen = 0;
    while right > 0 {
        let left = right.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(right - left).unwrap_or(0)];
        file.seek(SeekFrom::Start(left)).await?;
        file.read_exact(&mut block).await?;
        for (at, _) in block.iter().enumerate().rev().filter(|&(_, &b)| b == b'\n') {
            seen += 1;
            if seen > lines {
                return Ok(left + at as u64 + 1);
            }
        }
        right = left;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use cri::fake::FakeRuntime;
    use cri::{ContainerConfig, ContainerMetadata, SandboxConfig};
    use proptest::prelude::*;

    use super::*;

    fn log(lines: &[&str]) -> String {
        let stamp = |n: usize| format!("2026-01-01T00:00:{:02}.5Z", n % 60);
        lines
            .iter()
            .enumerate()
            .map(|(n, line)| format!("{} stdout {line}\n", stamp(n)))
            .collect()
    }

    async fn read(text: &str, options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, text).unwrap();
        let mut reader = LogReader::open(&path, "c", options, Arc::new(FakeRuntime::default()))
            .await
            .unwrap();
        let mut all = Vec::new();
        while let Some(piece) = reader.next().await {
            all.extend_from_slice(&piece);
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn parts_are_joined_and_stamped_once() {
        let text = log(&["P one ", "F two", "F ", "F end"]);
        assert_eq!(read(&text, LogOptions::default()).await, "one two\n\nend\n");
        let stamped = read(
            &text,
            LogOptions {
                timestamps: true,
                ..LogOptions::default()
            },
        )
        .await;
        assert!(
            stamped.starts_with("2026-01-01T00:00:00.500000000Z one two\n2026-01-01T00:00:02.500000000Z \n"),
            "{stamped}"
        );
    }

    #[tokio::test]
    async fn tail_since_and_limit_cut_as_kubelet_cuts() {
        let text = log(&["F a", "F b", "F c"]);
        let tail = |n| LogOptions {
            tail_lines: Some(n),
            ..LogOptions::default()
        };
        assert_eq!(read(&text, tail(2)).await, "b\nc\n");
        assert_eq!(read(&text, tail(0)).await, "");
        assert_eq!(read(&text, tail(9)).await, "a\nb\nc\n");
        let since = OffsetDateTime::parse("2026-01-01T00:00:01.5Z", &Rfc3339).unwrap();
        assert_eq!(
            read(
                &text,
                LogOptions {
                    since: Some(since),
                    ..LogOptions::default()
                }
            )
            .await,
            "b\nc\n"
        );
        assert_eq!(
            read(
                &text,
                LogOptions {
                    limit_bytes: Some(3),
                    ..LogOptions::default()
                }
            )
            .await,
            "a\nb"
        );
        assert_eq!(
            read(
                &text,
                LogOptions {
                    stream: Stream::Stderr,
                    ..LogOptions::default()
                }
            )
            .await,
            ""
        );
    }

    #[tokio::test]
    async fn what_is_no_line_is_skipped_and_an_unfinished_last_line_is_shown() {
        let text = format!("rubbish\n{}2026-01-01T00:00:09Z stdout F last", log(&["F a"]));
        assert_eq!(read(&text, LogOptions::default()).await, "a\nlast");
        let long = format!("{}\n{}", "x".repeat(3 * MAX_LINE), log(&["F a"]));
        assert_eq!(read(&long, LogOptions::default()).await, "a\n");
    }

    /// A running container in a fake runtime.
    async fn running() -> (Arc<FakeRuntime>, String) {
        let fake = Arc::new(FakeRuntime::with_images(&["i"]));
        let sandbox = fake.run_sandbox(&SandboxConfig::default(), "").await.unwrap();
        let metadata = ContainerMetadata {
            name: "c".into(),
            attempt: 0,
        };
        let config = ContainerConfig {
            metadata,
            image: "i".into(),
            ..ContainerConfig::default()
        };
        let id = fake
            .create_container(&sandbox, &config, &SandboxConfig::default())
            .await
            .unwrap();
        fake.start_container(&id).await.unwrap();
        (fake, id)
    }

    #[tokio::test(start_paused = true)]
    async fn following_goes_over_a_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, log(&["F a"])).unwrap();
        let (fake, id) = running().await;
        let options = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        let mut reader = LogReader::open(&path, &id, options, fake.clone()).await.unwrap();
        assert_eq!(reader.next().await.unwrap(), "a\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        let mut old = std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join("0.log.1"))
            .unwrap();
        std::io::Write::write_all(&mut old, log(&["F b"]).as_bytes()).unwrap();
        assert_eq!(reader.next().await.unwrap(), "b\n");
        std::fs::write(&path, log(&["F c"])).unwrap();
        assert_eq!(reader.next().await.unwrap(), "c\n");
        fake.exit_container(&id, 0);
        assert_eq!(reader.next().await, None);
    }

    proptest! {
        #[test]
        fn mangled_lines_never_panic_and_never_grow(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut out = Vec::new();
            Formatter::new(LogOptions::default()).line(&line, &mut out);
            prop_assert!(out.len() <= line.len());
        }

        #[test]
        fn a_limit_is_a_prefix_of_everything(texts in proptest::collection::vec("[a-z ]{0,20}", 0..20), limit in 1_u64..200, stamps: bool) {
            let lines: Vec<String> = texts.iter().enumerate().map(|(n, t)| format!("2026-01-01T00:00:00Z stdout {} {t}\n", if n % 3 == 0 { "P" } else { "F" })).collect();
            let format = |limit_bytes| {
                let mut formatter = Formatter::new(LogOptions { timestamps: stamps, limit_bytes, ..LogOptions::default() });
                let mut out = Vec::new();
                lines.iter().for_each(|line| formatter.line(line.as_bytes(), &mut out));
                out
            };
            let (all, some) = (format(None), format(Some(limit)));
            prop_assert!(all.starts_with(&some));
            prop_assert_eq!(some.len() as u64, limit.min(all.len() as u64));
        }
    }
}
