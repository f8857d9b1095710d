//! Messages between a program and its helper, over a stream socket: the length, then JSON, and
//! descriptors that come with the first byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The most that a message can have: the longest arguments and environment that Linux takes,
/// and as much again for the rest.
const MAX_BYTES: usize = 16 << 20;
/// The most descriptors that come with a message.
const MAX_FDS: usize = 8;

/// Sends a message and copies of descriptors.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let length = length.to_le_bytes();
    let mut sent = 0;
    let total = length.len() + bytes.len();
    while sent < total {
        let parts = if sent < length.len() {
            [IoSlice::new(&length[sent..]), IoSlice::new(bytes)]
        } else {
            [
                IoSlice::new(&bytes[sent - length.len()..]),
                IoSlice::new(&[]),
            ]
        };
        let fds = if sent == 0 { fds } else { &[] };
        match send_once(&socket, &parts, fds) {
            Err(Errno::INTR) => {}
            result => sent += result?,
        }
    }
    Ok(())
}

/// One call; descriptors go with its first byte.
pub(crate) fn send_once(
    socket: impl AsFd,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    rustix::net::sendmsg(socket, parts, &mut control, SendFlags::NOSIGNAL)
}

/// Receives a message; `None` when the other end is closed.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut fds = Vec::new();
    let mut length = [0; 4];
    if !fill(&socket, &mut length, &mut fds)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    if length > 0 && !fill(&socket, &mut bytes, &mut fds)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((bytes, fds)))
}

/// Fills the buffer; false if the end comes first.
fn fill(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match receive_once(&socket, &mut buffer[filled..], fds) {
            Err(Errno::INTR) => {}
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            result => filled += result?,
        }
    }
    Ok(true)
}

/// One call.
pub(crate) fn receive_once(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::{Read, Write};

    #[test]
    fn long_messages_and_descriptors_arrive() {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let (here, there) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        let text: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let sent = text.clone();
        let sender = std::thread::spawn(move || {
            send(&here, &sent, &[write.as_fd()]).unwrap();
            send(&here, b"", &[]).unwrap();
        });
        let (bytes, fds) = receive(&there).unwrap().unwrap();
        assert!(bytes == text);
        let [write] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        std::fs::File::from(write).write_all(b"through").unwrap();
        sender.join().unwrap();
        let mut through = String::new();
        std::fs::File::from(read)
            .read_to_string(&mut through)
            .unwrap();
        assert_eq!(through, "through");
        assert_eq!(receive(&there).unwrap().unwrap().0, b"");
        assert!(receive(&there).unwrap().is_none());
    }

    #[test]
    fn a_length_beyond_all_reason_is_refused() {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let (here, there) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        rustix::io::write(&here, &u32::MAX.to_le_bytes()).unwrap();
        assert!(receive(&there).is_err());
        rustix::io::write(&here, &[8, 0, 0, 0, b'x']).unwrap();
        drop(here);
        assert!(receive(&there).is_err());
    }
}
