//! What leaves a request for the connection, which has it for longer than the request is open: made
//! anew outside, as far as that is cheaper than a survivor.

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;

/// Most bytes of a frame that are copied. A longer one has pages of its own: if it survives, that
/// costs nothing.
pub(crate) const MOST_COPIED_BYTES: usize = 32 << 10;

/// Headers that are added to a response on its way, as a rule: its length, its type.
const ADDED_HEADERS: usize = 2;

/// Returns the same frame. What others share, such as data of a cache or of the program itself, is
/// not copied.
pub(crate) fn frame<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    match frame.into_data() {
        Ok(mut data) => {
            let length = data.remaining();
            let bytes = data.copy_to_bytes(length);
            let is_copied = length <= MOST_COPIED_BYTES && bytes.is_unique();
            Frame::data(if is_copied { Bytes::copy_from_slice(&bytes) } else { bytes })
        }
        Err(frame) => {
            Frame::trailers(headers(frame.into_trailers().unwrap_or_default(), Strings::Copied))
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

/// Returns the same headers in memory of the caller's: a connection of HTTP/1 keeps the memory of
/// the map for the next request, one of HTTP/2 writes them after the body was polled, and may have
/// some in its table until it ends.
pub(crate) fn headers(headers: HeaderMap, strings: Strings) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(headers.len() + ADDED_HEADERS);
    match strings {
        Strings::Moved => out.extend(headers),
        Strings::Copied => {
            for (name, value) in &headers {
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
        frame(Frame::data(data)).into_data().unwrap()
    }

    #[test]
    fn data_is_copied_if_nobody_shares_it() {
        let alone = Bytes::from(vec![1; 100]);
        let address = alone.as_ptr();
        let copy = data(alone);
        assert_eq!(&copy[..], [1; 100]);
        assert_ne!(copy.as_ptr(), address);

        let shared = Bytes::from(vec![2; 100]);
        assert_eq!(data(shared.clone()).as_ptr(), shared.as_ptr());
        assert_eq!(data(&b"static"[..]), "static");
        let long = Bytes::from(vec![3; MOST_COPIED_BYTES + 1]);
        let address = long.as_ptr();
        assert_eq!(data(long).as_ptr(), address);
        assert_eq!(data(VecDeque::from([1, 2, 3])), &[1, 2, 3][..]);
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
            let after = headers(before.clone(), strings);
            assert_eq!(after, before);
            assert!(after["set-cookie"].is_sensitive());
        }
        let trailers = frame(Frame::<Bytes>::trailers(before.clone()));
        assert_eq!(trailers.into_trailers().unwrap(), before);
    }
}
