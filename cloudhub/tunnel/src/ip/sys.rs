//! The one place with `unsafe`: a TUN device and what is set of it.
#![expect(
    unsafe_code,
    reason = "nix has no calls for TUN devices and for a device's MTU and queue"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use socket2::{Domain, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::coalesce::Joins;

nix::ioctl_write_ptr_bad!(
    /// Makes or takes the device that the request names.
    set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);
nix::ioctl_write_int_bad!(
    /// What the reader of the device does itself.
    set_offload,
    nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
);
nix::ioctl_write_ptr_bad!(
    /// How long the header before each packet is.
    set_header,
    nix::request_code_write!(b'T', 216, size_of::<libc::c_int>()),
    libc::c_int
);
nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_queue, libc::SIOCSIFTXQLEN, libc::ifreq);
nix::ioctl_readwrite_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);

/// `TUN_F_*` of linux/if_tun.h: checksums, TCP over IPv4 and IPv6, TCP with ECN.
const TCP: libc::c_int = 0x01 | 0x02 | 0x04 | 0x08;
/// UDP datagrams over IPv4 and IPv6, since Linux 6.2.
const UDP: libc::c_int = 0x20 | 0x40;

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data, and all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Makes TUN device `name` in the calling thread's network namespace, whose file brings a virtio_net_hdr before each packet and never blocks.
/// It is gone when the file is closed.
pub(super) fn open(name: &str) -> io::Result<(OwnedFd, Joins)> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(name)?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the file is open, and the request is a whole ifreq that the kernel only reads and fills.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }?;
    let header = super::header::VNET as libc::c_int;
    // SAFETY: as above; the number is only read.
    unsafe { set_header(file.as_raw_fd(), &raw const header) }?;
    let set = |offload| {
        // SAFETY: the file is open, and the argument is a plain number.
        unsafe { set_offload(file.as_raw_fd(), offload) }.is_ok()
    };
    let udp = set(TCP | UDP);
    let joins = Joins {
        udp,
        tcp: udp || set(TCP),
    };
    let fd = OwnedFd::from(file);
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok((fd, joins))
}

/// Lets tokio tell when the file can be read.
pub(super) fn watch(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open file as long as it lives, and nothing else takes it out of the AsyncFd.
    unsafe { AsyncFd::register(file) }.map_err(|error| error.into_parts().1)
}

/// Sets the MTU and the length of the queue (packets) of a device in the calling thread's network namespace, and brings it up.
pub(super) fn configure(name: &str, mtu: usize, queue: usize) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let number = |number: usize| libc::c_int::try_from(number).map_err(io::Error::other);
    let mut wanted = request(name)?;
    wanted.ifr_ifru.ifru_mtu = number(mtu)?;
    // SAFETY: the socket is open, and the request is a whole ifreq that the kernel only reads.
    unsafe { set_mtu(socket.as_raw_fd(), &raw const wanted) }?;
    // The queue's length is an int of the same union.
    wanted.ifr_ifru.ifru_metric = number(queue)?;
    // SAFETY: as above.
    unsafe { set_queue(socket.as_raw_fd(), &raw const wanted) }?;
    let mut wanted = request(name)?;
    // SAFETY: as above; the kernel writes the flags into it.
    unsafe { get_flags(socket.as_raw_fd(), &raw mut wanted) }?;
    // SAFETY: the kernel has just written this field.
    let flags = unsafe { wanted.ifr_ifru.ifru_flags };
    wanted.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: as above.
    unsafe { set_flags(socket.as_raw_fd(), &raw const wanted) }?;
    Ok(())
}
