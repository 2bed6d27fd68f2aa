//! HTTP proxies: a TCP connection to the hub through CONNECT (RFC 9110 §9.3.6). What goes through it is the tunnel's own TLS.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Squid's answer has 39 bytes; its page of refusal, headers and all, begins within 1 KiB.
const MAX_HEAD: usize = 8 * 1024;
/// What is shown of a proxy's words.
const MAX_SHOWN: usize = 120;
/// A user and a password.
const MAX_CREDENTIALS: u64 = 1024;

/// An HTTP proxy that takes CONNECT, perhaps with a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    authority: String,
    credentials: Option<PathBuf>,
}

impl Proxy {
    /// The same with a password: the file's first line is `USER:PASSWORD` (RFC 7617, Basic). It is read for each connection, so it may change.
    #[must_use]
    pub fn with_credentials(self, file: impl Into<PathBuf>) -> Self {
        Self {
            credentials: Some(file.into()),
            ..self
        }
    }

    /// Its `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

impl std::fmt::Display for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// What [`Proxy`] is read from is something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("want http://HOST:PORT, without user, password or path")]
pub struct NotAProxy;

impl FromStr for Proxy {
    type Err = NotAProxy;

    fn from_str(text: &str) -> Result<Self, NotAProxy> {
        let authority = text.strip_prefix("http://").ok_or(NotAProxy)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.rsplit_once(':').ok_or(NotAProxy)?;
        let named = match host.strip_prefix('[') {
            Some(inside) => inside
                .strip_suffix(']')
                .is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
            None => !host.is_empty() && host.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._".contains(&c)),
        };
        if !named || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(NotAProxy);
        }
        Ok(Self {
            authority: authority.to_owned(),
            credentials: None,
        })
    }
}

/// A proxy did not connect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("it refuses: {0}")]
    Refused(String),
    #[error("its answer is not HTTP's: {0:?}")]
    NotHttp(String),
    #[error("its answer has more than {MAX_HEAD} bytes")]
    TooLong,
    #[error("its password in {file}: {why}")]
    Credentials { file: String, why: String },
}

/// Asks `proxy` at the other end of `stream` for a connection to `target`, `host:port`; what is read and written afterwards is the target's.
pub(crate) async fn connect(
    proxy: &Proxy,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    target: &str,
) -> Result<(), ConnectError> {
    let authorization = match &proxy.credentials {
        Some(file) => authorization(file).await?,
        None => String::new(),
    };
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    loop {
        // The target speaks second in TLS: what comes before the end of the head is all that there is.
        if stream.read_buf(&mut head).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        if answer(&head)? {
            return Ok(());
        }
    }
}

/// The header with what the file says.
async fn authorization(file: &Path) -> Result<String, ConnectError> {
    let wrong = |why: &dyn std::fmt::Display| ConnectError::Credentials {
        file: file.display().to_string(),
        why: why.to_string(),
    };
    let opened = File::open(file).await.map_err(|error| wrong(&error))?;
    let mut text = String::new();
    let read = opened.take(MAX_CREDENTIALS + 1).read_to_string(&mut text).await;
    if read.map_err(|error| wrong(&error))? as u64 > MAX_CREDENTIALS {
        return Err(wrong(&format_args!("more than {MAX_CREDENTIALS} bytes")));
    }
    let line = text.lines().next().unwrap_or_default();
    if !line.contains(':') || line.chars().any(char::is_control) {
        return Err(wrong(&"its first line is not USER:PASSWORD"));
    }
    Ok(format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(line)))
}

/// Reads what has come of a proxy's answer; true when it is whole and says yes.
pub(crate) fn answer(head: &[u8]) -> Result<bool, ConnectError> {
    let line_end = head.windows(2).position(|pair| pair == b"\r\n");
    let (line, rest) = match line_end {
        Some(end) => head.split_at(end),
        None if head.len() > MAX_HEAD => return Err(ConnectError::TooLong),
        // One that does not begin as HTTP does will not become it.
        None if !head.starts_with(&b"HTTP/1."[..head.len().min(7)]) => return Err(ConnectError::NotHttp(shown(head))),
        None => return Ok(false),
    };
    match status(line) {
        Some(200..=299) => {}
        Some(_) => return Err(ConnectError::Refused(shown(line))),
        None => return Err(ConnectError::NotHttp(shown(line))),
    }
    match rest.windows(4).position(|end| end == b"\r\n\r\n") {
        Some(at) if at + 4 == rest.len() => Ok(true),
        Some(at) => Err(ConnectError::NotHttp(shown(&rest[at + 4..]))),
        None if head.len() > MAX_HEAD => Err(ConnectError::TooLong),
        None => Ok(false),
    }
}

/// The code of a status line.
fn status(line: &[u8]) -> Option<u16> {
    let after = line.strip_prefix(b"HTTP/1.")?;
    let code = after.get(1..5)?.strip_prefix(b" ")?;
    let ends = matches!(after.get(5), None | Some(b' '));
    (ends && code.iter().all(u8::is_ascii_digit))
        .then(|| code.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0')))
}

/// The start of a text from anywhere, fit for a log.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_SHOWN)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_host_and_a_port() {
        for (text, authority) in [
            ("http://proxy.example:3128", "proxy.example:3128"),
            ("http://10.0.0.1:8080/", "10.0.0.1:8080"),
            ("http://[2001:db8::1]:3128", "[2001:db8::1]:3128"),
        ] {
            assert_eq!(text.parse::<Proxy>().unwrap().authority(), authority);
        }
        for text in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "http://proxy",
            "http://proxy:0",
            "http://proxy:99999",
            "http://user:secret@proxy:3128",
            "http://proxy:3128/path",
            "http://:3128",
            "http://[nonsense]:3128",
            "http://pro xy:3128",
            "http://proxy\r\n:3128",
        ] {
            assert_eq!(text.parse::<Proxy>(), Err(NotAProxy), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_password_is_the_first_line_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy");
        for (text, wanted) in [
            // RFC 7617 §2.
            (
                "Aladdin:open sesame\n",
                Ok("Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"),
            ),
            ("a:b:c\r\nwhatever", Ok("Proxy-Authorization: Basic YTpiOmM=\r\n")),
            ("", Err("its first line is not USER:PASSWORD")),
            ("secret", Err("its first line is not USER:PASSWORD")),
            ("a:b\u{7f}", Err("its first line is not USER:PASSWORD")),
            (&"a:".repeat(600), Err("more than 1024 bytes")),
        ] {
            std::fs::write(&file, text).unwrap();
            let told = authorization(&file).await.map_err(|error| error.to_string());
            let why = |why| format!("its password in {}: {why}", file.display());
            assert_eq!(told, wanted.map(str::to_owned).map_err(why));
        }
        let missing = authorization(Path::new("/nonexistent")).await.unwrap_err().to_string();
        assert!(missing.contains("/nonexistent: No such file"), "{missing}");
    }

    #[test]
    fn an_answer_is_yes_when_its_head_is_whole() {
        let yes = b"HTTP/1.1 200 Connection established\r\nVia: squid\r\n\r\n";
        for cut in 0..yes.len() {
            assert!(!answer(&yes[..cut]).unwrap(), "cut at {cut}");
        }
        assert!(answer(yes).unwrap());
        assert!(answer(b"HTTP/1.0 200\r\n\r\n").unwrap());
    }

    #[test]
    fn another_answer_is_an_error_in_the_proxys_words() {
        for (head, why) in [
            (
                &b"HTTP/1.1 403 Forbidden\r\nServer: squid"[..],
                "it refuses: HTTP/1.1 403 Forbidden",
            ),
            (
                b"HTTP/1.1 407 Proxy Authentication Required\r\n",
                "407 Proxy Authentication",
            ),
            (b"SSH-2.0-OpenSSH_9.2", "not HTTP's: \"SSH-2.0"),
            (b"HTTP/1.1 two hundred\r\n", "not HTTP's"),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP's"),
            (b"HTTP/1.1 200 OK\r\n\r\nhello", "not HTTP's: \"hello\""),
        ] {
            let error = answer(head).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let endless = [&b"HTTP/1.1 200 OK\r\n"[..], &[b'a'; MAX_HEAD]].concat();
        assert!(matches!(answer(&endless), Err(ConnectError::TooLong)));
        assert!(matches!(
            answer(&[b"HTTP/1.1 ", [b'2'; MAX_HEAD].as_slice()].concat()),
            Err(ConnectError::TooLong)
        ));
    }
}
