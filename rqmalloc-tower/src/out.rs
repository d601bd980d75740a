//! What leaves a request for the connection, which has it for longer than the request is open: made
//! anew outside, as far as that is cheaper than a survivor.

use bytes::{Buf, Bytes};
use http::response::Parts;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use std::mem;

/// Most bytes of a frame that are copied, also of what others share: a cache, or an encoder that cuts
/// its frames from one buffer, which would survive as a whole. A longer one has pages of its own: if
/// it survives, that costs nothing.
pub(crate) const MOST_COPIED_BYTES: usize = 32 << 10;

/// Headers that are added to a response on its way, as a rule: its length, its type.
const ADDED_HEADERS: usize = 2;

/// A frame on its way out.
pub(crate) enum Leaving {
    /// A copy of its data, made outside.
    Copied(Vec<u8>),
    /// Its data as it is.
    Data(Bytes),
    Trailers(HeaderMap),
}

/// Returns memory for the next frame of a body, if it is known how long that is. To be called
/// outside of the request.
pub(crate) fn room_for(size: &SizeHint) -> Vec<u8> {
    match size.exact() {
        Some(length) if length <= MOST_COPIED_BYTES as u64 => Vec::with_capacity(length as usize),
        _ => Vec::new(),
    }
}

/// Copies the data of a frame if there is room for it, and drops it, where it was made.
pub(crate) fn take<D: Buf>(frame: Frame<D>, mut room: Vec<u8>) -> Leaving {
    match frame.into_data() {
        Ok(mut data) => {
            let bytes = data.copy_to_bytes(data.remaining());
            if bytes.len() <= room.capacity() {
                room.extend_from_slice(&bytes);
                return Leaving::Copied(room);
            }
            Leaving::Data(bytes)
        }
        Err(frame) => Leaving::Trailers(frame.into_trailers().unwrap_or_default()),
    }
}

impl Leaving {
    /// Whether nothing of the request's memory is in it.
    pub(crate) fn is_out(&self) -> bool {
        matches!(self, Self::Copied(_))
    }

    /// Returns the frame. To be called outside of the request.
    pub(crate) fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Copied(data) => Frame::data(data.into()),
            Self::Data(data) if data.len() <= MOST_COPIED_BYTES => {
                Frame::data(Bytes::copy_from_slice(&data))
            }
            Self::Data(data) => Frame::data(data),
            Self::Trailers(mut trailers) => {
                Frame::trailers(headers(&mut trailers, Strings::Copied))
            }
        }
    }
}

/// What becomes of names and values of headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Strings {
    /// They are moved: the connection writes and drops them before it asks for the body.
    Moved,
    /// They are copied: the connection keeps them for a while.
    Copied,
}

/// What is left of a head, to be dropped inside.
pub(crate) type Rest = (HeaderMap, Extensions);

/// Puts a head into memory of the caller's, and returns what is left of it. To be called outside of
/// the request. Extensions are cloned: of what they are made, only their types know (a gRPC status
/// is one).
pub(crate) fn head(head: &mut Parts, strings: Strings) -> Rest {
    let headers = headers(&mut head.headers, strings);
    let extensions = head.extensions.clone();
    (mem::replace(&mut head.headers, headers), mem::replace(&mut head.extensions, extensions))
}

/// Returns the same headers in memory of the caller's, and leaves what is to be dropped inside. A
/// connection of HTTP/1 keeps the memory of the map for the next request, one of HTTP/2 writes them
/// after the body was polled, and may have some in its table until it ends.
pub(crate) fn headers(headers: &mut HeaderMap, strings: Strings) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(headers.len() + ADDED_HEADERS);
    match strings {
        Strings::Moved => out.extend(headers.drain()),
        Strings::Copied => {
            for (name, value) in &*headers {
                out.append(copy_of_name(name), copy_of_value(value));
            }
        }
    }
    out
}

fn copy_of_name(name: &HeaderName) -> HeaderName {
    HeaderName::from_bytes(name.as_str().as_bytes()).unwrap_or_else(|_| name.clone())
}

fn copy_of_value(value: &HeaderValue) -> HeaderValue {
    let copy = HeaderValue::from_bytes(value.as_bytes());
    let mut copy = copy.unwrap_or_else(|_| value.clone());
    copy.set_sensitive(value.is_sensitive());
    copy
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn data<D: Buf>(data: D) -> Bytes {
        let room = room_for(&SizeHint::default());
        take(Frame::data(data), room).frame().into_data().unwrap()
    }

    #[test]
    fn data_is_copied_if_it_is_short() {
        let short = Bytes::from(vec![1; MOST_COPIED_BYTES]);
        let copy = data(short.clone());
        assert_eq!(copy, short);
        assert_ne!(copy.as_ptr(), short.as_ptr());
        let long = Bytes::from(vec![2; MOST_COPIED_BYTES + 1]);
        assert_eq!(data(long.clone()).as_ptr(), long.as_ptr());
        assert_eq!(data(&b"static"[..]), "static");
        assert_eq!(data(VecDeque::from([1, 2, 3])), &[1, 2, 3][..]);
    }

    #[test]
    fn data_whose_length_is_known_is_copied_into_room_for_it() {
        let room = room_for(&SizeHint::with_exact(100));
        let address = room.as_ptr();
        let out = take(Frame::data(Bytes::from(vec![1; 100])), room);
        let data = out.frame().into_data().unwrap();
        assert_eq!((&data[..], data.as_ptr()), (&[1; 100][..], address));

        // More than was said, and less.
        for length in [101, 99] {
            let out = take(Frame::data(Bytes::from(vec![2; length])), Vec::with_capacity(100));
            assert_eq!(out.frame().into_data().unwrap(), vec![2; length]);
        }
        assert_eq!(room_for(&SizeHint::with_exact(u64::MAX)).capacity(), 0);
        assert_eq!(room_for(&SizeHint::with_exact(MOST_COPIED_BYTES as u64 + 1)).capacity(), 0);
    }

    #[test]
    fn headers_stay_the_same() {
        let mut before = HeaderMap::new();
        for (name, value) in [("x-a", "1"), ("x-a", "2"), ("content-type", "text/plain")] {
            before.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut secret = HeaderValue::from_bytes(b"caf\xe9").unwrap();
        secret.set_sensitive(true);
        before.append("set-cookie", secret);
        for strings in [Strings::Moved, Strings::Copied] {
            let after = headers(&mut before.clone(), strings);
            assert_eq!(after, before);
            assert!(after["set-cookie"].is_sensitive());
        }
        let trailers = take(Frame::<Bytes>::trailers(before.clone()), Vec::new()).frame();
        assert_eq!(trailers.into_trailers().unwrap(), before);
    }
}
