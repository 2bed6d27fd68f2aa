//! The one place with `unsafe`: a TUN device, waiting to the nanosecond, real-time scheduling.
#![expect(
    unsafe_code,
    reason = "nix has no TUNSETIFF; its ppoll would add a feature to every crate; none has sched_setscheduler"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::libc;

nix::ioctl_write_ptr_bad!(
    /// Makes or takes the device that the request names.
    set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// Makes TUN device `name` in the calling thread's network namespace: plain IP packets, no header before them, gone when the file is closed.
///
/// # Errors
/// When there is no `/dev/net/tun`, the name is taken or longer than 15 bytes, or the caller is not root.
pub(crate) fn tun(name: &str) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data, and all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the file is open, and the request is a whole ifreq that the kernel only reads and fills.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }?;
    let fd = OwnedFd::from(file);
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags))?;
    Ok(fd)
}

/// One file to wait for; a negative one is passed over.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Waited(libc::pollfd);

impl Waited {
    pub(crate) fn new(fd: RawFd) -> Self {
        Self(libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
    }

    /// Whether there is something to read, or an error to meet by reading.
    pub(crate) fn is_ready(self) -> bool {
        self.0.revents != 0
    }

    /// Waits for it no more.
    pub(crate) fn forget(&mut self) {
        self.0.fd = -1;
    }
}

/// Waits until one of `files` can be read, or for `timeout`.
///
/// # Errors
/// What the kernel says; a signal is not an error.
pub(crate) fn wait(files: &mut [Waited], timeout: Duration) -> io::Result<()> {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(i32::MAX.into()),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: Waited is a transparent pollfd, the length is the slice's, and the null mask means that none is changed.
    let ready = unsafe {
        libc::ppoll(
            files.as_mut_ptr().cast(),
            files.len() as libc::nfds_t,
            &raw const timeout,
            std::ptr::null(),
        )
    };
    if ready >= 0 {
        return Ok(());
    }
    for file in files {
        file.0.revents = 0;
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        error => Err(error),
    }
}

/// Lets the calling thread run before all that is not real-time; says whether the kernel allows it.
pub(crate) fn become_realtime() -> bool {
    // SAFETY: plain numbers, of which musl has more than glibc; 0 is what nobody asks for.
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = 10;
    // SAFETY: the parameter outlives the call, and 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) == 0 }
}
