//! What is answered instead of a handler's response.

use bytes::Bytes;
use http::{Response, StatusCode};

/// What [`RequestLayer::on_limit`](crate::RequestLayer::on_limit) and
/// [`on_bailout`](crate::RequestLayer::on_bailout) may return: a status, a status with a text, or a
/// response whose body is a text or bytes.
///
/// ```
/// use http::StatusCode;
/// use rqmalloc_tower::IntoAnswer;
///
/// let answer = (StatusCode::PAYLOAD_TOO_LARGE, "too much").into_answer();
/// assert_eq!((answer.status().as_u16(), &answer.body()[..]), (413, &b"too much"[..]));
/// ```
pub trait IntoAnswer {
    /// Returns the response.
    fn into_answer(self) -> Response<Bytes>;
}

impl IntoAnswer for StatusCode {
    fn into_answer(self) -> Response<Bytes> {
        (self, Bytes::new()).into_answer()
    }
}

impl<T: Into<Bytes>> IntoAnswer for (StatusCode, T) {
    fn into_answer(self) -> Response<Bytes> {
        let mut response = Response::new(self.1.into());
        *response.status_mut() = self.0;
        response
    }
}

impl<T: Into<Bytes>> IntoAnswer for Response<T> {
    fn into_answer(self) -> Response<Bytes> {
        self.map(Into::into)
    }
}
