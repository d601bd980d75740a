//! As much of HTTP/1.1 as a load needs: one connection that is kept, and answers that are read.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// A connection, which is made anew when the service has closed it.
pub struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    /// What was read of the answer.
    answer: Vec<u8>,
}

/// The head of an answer, as far as it says where the answer ends.
struct Head {
    bytes: usize,
    status: String,
    /// `None`: in chunks.
    length: Option<usize>,
}

impl Client {
    /// Returns one that is not connected yet.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, answer: Vec::with_capacity(2 * READ_BYTES) }
    }

    /// Asks for a path, and returns the answer's status.
    pub async fn get(&mut self, path: &str) -> Result<String> {
        let answer = self.ask(path).await;
        if answer.is_err() {
            self.stream = None;
        }
        answer.map(|head| head.status)
    }

    /// Asks for a path, and returns what is there.
    pub async fn content(&mut self, path: &str) -> Result<Vec<u8>> {
        let head = self.ask(path).await?;
        Ok(self.answer.split_off(head.bytes))
    }

    async fn ask(&mut self, path: &str) -> Result<Head> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                none.insert(stream)
            }
        };
        let question = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(question.as_bytes()).await?;
        self.answer.clear();
        let mut head = None;
        loop {
            if stream.read_buf(&mut self.answer).await? == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "cut off"));
            }
            if head.is_none() {
                head = parse(&self.answer)?;
            }
            let is_over = head.as_ref().is_some_and(|head| match head.length {
                Some(length) => self.answer.len() >= head.bytes + length,
                None => self.answer.ends_with(b"\r\n0\r\n\r\n"),
            });
            if let (true, Some(head)) = (is_over, head.take_if(|_| is_over)) {
                return Ok(head);
            }
        }
    }
}

/// Returns the head if it is there.
fn parse(answer: &[u8]) -> Result<Option<Head>> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(None);
    };
    let bad = || Error::new(ErrorKind::InvalidData, "no HTTP");
    let text = std::str::from_utf8(&answer[..end]).map_err(|_| bad())?;
    let status = text.split(' ').nth(1).ok_or_else(bad)?.to_owned();
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Ok(Some(Head { bytes: end + 4, status, length }))
}

/// Numbers without a pattern (xorshift).
pub struct Random(u64);

impl Random {
    /// Returns others for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns one below this limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}
