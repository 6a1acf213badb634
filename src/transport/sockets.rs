//! Where an endpoint gets its socket from.

use std::fmt::Debug;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{AsyncUdpSocket, Runtime as _};

use super::limits;

/// A source of sockets. A simulation has one of its own; everything above is the same.
pub trait Sockets: Debug + Send + Sync + 'static {
    /// Binds a socket. Called inside the tokio runtime that will drive it.
    ///
    /// # Errors
    /// Why the address is not to be had.
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;
}

/// The operating system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemSockets;

impl Sockets for SystemSockets {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = UdpSocket::bind(addr)?;
        enlarge_buffers(&socket);
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }
}

/// The usual 208 KiB overflow while a large entry arrives and the runtime is busy, and every lost
/// packet costs a retransmission. The operating system may give less than asked for (`rmem_max`,
/// `wmem_max`) or nothing; QUIC works with any size.
fn enlarge_buffers(socket: &UdpSocket) {
    if let Ok(state) = quinn::udp::UdpSocketState::new(socket.into()) {
        let _ = state.set_recv_buffer_size(socket.into(), limits::SOCKET_BUFFER_BYTES);
        let _ = state.set_send_buffer_size(socket.into(), limits::SOCKET_BUFFER_BYTES);
    }
}
