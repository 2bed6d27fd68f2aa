//! The netlink socket: full dumps, and the news that there is something to dump.
//!
//! News are not read, only noticed: what they say is in the next dump, and a queue that overran (ENOBUFS) has lost some of it anyway.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
};
use nix::sys::time::TimeVal;
use tokio::net::UdpSocket;

use crate::decode::{self, ADDRESS_HEADER, HEADER, LINK_HEADER, ROUTE_HEADER, RULE_HEADER, message};
use crate::kernel::Kernel;

/// From the first news to the dump: a modem that comes brings a link, addresses and routes, one after the other.
pub const DEBOUNCE: Duration = Duration::from_millis(200);
/// The kernel answers a dump from within the call that asks.
const ANSWER_WITHIN: i64 = 2;
/// The kernel fills at most 32 KiB at once.
const BUFFER: usize = 64 * 1024;
/// A dump during which something changed is begun again so often; then what it brought has to do, as the news of the change is there.
const TRIES: usize = 3;

/// Multicast groups (`RTMGRP_*`): links, addresses, routes and rules of IPv4 and IPv6.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;

fn open(flags: SockFlag, groups: u32) -> io::Result<OwnedFd> {
    let kind = SockType::Raw;
    let socket = socket(
        AddressFamily::Netlink,
        kind,
        SockFlag::SOCK_CLOEXEC | flags,
        SockProtocol::NetlinkRoute,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Reads the network of the calling thread's namespace. Blocks for as long as the kernel needs to write it down: some hundred
/// microseconds for a robot's.
///
/// # Errors
/// When there is no netlink socket to be had, or the kernel refuses a dump.
pub fn read() -> io::Result<Kernel> {
    let socket = open(SockFlag::empty(), 0)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_WITHIN, 0))?;
    let mut kernel = Kernel::default();
    for attempt in 1..=TRIES {
        kernel = Kernel::default();
        let mut whole = true;
        for (kind, header) in [
            (message::NEW_LINK, LINK_HEADER),
            (message::NEW_ADDRESS, ADDRESS_HEADER),
            (message::NEW_ROUTE, ROUTE_HEADER),
            (message::NEW_RULE, RULE_HEADER),
        ] {
            let sequence = (attempt as u32) << 16 | u32::from(kind);
            whole &= dump(&socket, (kind, header, sequence), &mut kernel)?;
        }
        if whole {
            break;
        }
    }
    kernel.rules.sort_by_key(|rule| rule.priority);
    Ok(kernel)
}

/// One dump; false when something changed meanwhile.
fn dump(socket: &OwnedFd, (kind, header, sequence): (u16, usize, u32), into: &mut Kernel) -> io::Result<bool> {
    const REQUEST_DUMP: u16 = 0x1 | 0x300;
    const INTERRUPTED: u16 = 0x10;
    let length = (HEADER + header) as u32;
    let mut request = length.to_ne_bytes().to_vec();
    // RTM_GET… is RTM_NEW… and 2.
    request.extend((kind + 2).to_ne_bytes());
    request.extend(REQUEST_DUMP.to_ne_bytes());
    request.extend(sequence.to_ne_bytes());
    request.resize(HEADER + header, 0);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    let mut whole = true;
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for message in decode::messages(&buffer[..length]) {
            if message.sequence != sequence {
                continue;
            }
            whole &= message.flags & INTERRUPTED == 0;
            match message.kind {
                message::DONE => return Ok(whole),
                // A kernel without policy routing has no rules.
                message::ERROR if kind == message::NEW_RULE => return Ok(whole),
                message::ERROR => return Err(refusal(message.body)),
                _ => decode::add(message, into),
            }
        }
    }
}

fn refusal(body: &[u8]) -> io::Error {
    let code = body.get(..4).and_then(|code| code.try_into().ok());
    io::Error::from_raw_os_error(code.map_or(0, i32::from_ne_bytes).saturating_neg())
}

/// Says when the kernel's network has changed.
#[derive(Debug)]
pub struct Monitor {
    /// A netlink socket: of datagrams, as UDP's is, which is all that tokio has to know of it.
    socket: UdpSocket,
    /// There are news that nobody has been told of.
    news: bool,
}

impl Monitor {
    /// Subscribes, in the calling thread's namespace. What changes from now on is told.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> io::Result<Self> {
        let socket = open(SockFlag::SOCK_NONBLOCK, GROUPS)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            news: false,
        })
    }

    /// Returns [`DEBOUNCE`] after a change. Cancel-safe.
    ///
    /// # Errors
    /// When the socket cannot be read any more.
    pub async fn changed(&mut self) -> io::Result<()> {
        while !self.news {
            self.socket.readable().await?;
            self.news = self.take()?;
        }
        tokio::time::sleep(DEBOUNCE).await;
        while self.take()? {}
        self.news = false;
        Ok(())
    }

    /// Takes one datagram, or the word that some were lost; false when there is none.
    fn take(&self) -> io::Result<bool> {
        match self.socket.try_recv(&mut [0; 16]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
