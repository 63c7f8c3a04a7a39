//! The number of written bytes that the peer has not acknowledged. This system call has no safe wrapper.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

/// The number of bytes that were written to a TCP socket and not acknowledged by its peer (`SIOCOUTQ`, tcp(7)). `None`
/// if the system does not know.
#[cfg(target_os = "linux")]
pub(super) fn unacknowledged(socket: BorrowedFd<'_>) -> Option<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, since it is borrowed. SIOCOUTQ (the same number as TIOCOUTQ) writes one
    // int to the address it is given, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (result == 0).then(|| usize::try_from(bytes).ok()).flatten()
}

/// Systems without `SIOCOUTQ`. The orderly end of the connection is the only evidence there.
#[cfg(not(target_os = "linux"))]
pub(super) fn unacknowledged(_socket: BorrowedFd<'_>) -> Option<usize> {
    Some(0)
}
