//! One socket option that the `zmq` crate does not offer.

use std::io;

use zmq::{Socket, SocketType};

/// Makes a full send queue an error (`EAGAIN`) instead of a silently dropped message (`ZMQ_XPUB_NODROP`).
///
/// # Errors
/// If the socket is no XPUB, or libzmq refuses.
#[expect(unsafe_code, reason = "the zmq crate has no method for this option")]
pub(super) fn set_no_drop(socket: &mut Socket) -> io::Result<()> {
    if socket.get_socket_type().map_err(io::Error::other)? != SocketType::XPUB {
        return Err(io::Error::other("ZMQ_XPUB_NODROP needs an XPUB socket"));
    }
    let on: i32 = 1;
    // SAFETY: the pointer is a live socket for as long as `socket` is borrowed; the option takes an int of 4 bytes.
    let result = unsafe {
        zmq_sys::zmq_setsockopt(
            socket.as_mut_ptr(),
            zmq_sys::ZMQ_XPUB_NODROP as i32,
            (&raw const on).cast(),
            size_of::<i32>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
