//! A runtime whose operations the kernel does (monoio, on io_uring): requests in scopes, and reads
//! that are cancelled while the kernel still has their buffer.
//!
//! The buffer of a dropped operation is the driver's until the kernel is done with it, which is
//! after the request's future is gone. `close` adopts it: it stays where it is. An `end` would free
//! what the kernel writes to; before one, every operation is cancelled and waited for.

mod support;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt, CancelableAsyncReadRent, Canceller};
use monoio::net::UnixStream;
use monoio::{FusionDriver, FusionRuntime, RuntimeBuilder};
use rqmalloc::{Outcome, Request, inherit};
use std::future::poll_fn;
use std::io::Write;
use std::pin::pin;
use std::task::Poll;
use support::stays_flat;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// Requests of each kind.
const MANY: usize = 10_000;

/// What a request reads into, in bytes: 640 MB of all of them.
const BUFFER_BYTES: usize = 64 << 10;

/// What the kernel writes, and what others write.
const KERNELS: u8 = 7;
const OTHERS: u8 = 1;

/// What has the driver pass on what is queued, and take what the kernel is done with.
struct Turns(UnixStream, UnixStream);

impl Turns {
    fn new() -> Self {
        let (writer, reader) = UnixStream::pair().unwrap();
        Self(writer, reader)
    }

    async fn turn(&mut self) {
        self.0.write_all(vec![OTHERS]).await.0.unwrap();
        let (count, _) = self.1.read(vec![0; 1]).await;
        assert_eq!(count.unwrap(), 1);
    }
}

/// Polls once, and fails if it is done.
async fn start<T>(mut future: impl Future<Output = T> + Unpin) {
    poll_fn(|context| {
        assert!(std::pin::Pin::new(&mut future).poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
}

/// Two tasks talk, in one request.
async fn talk() {
    let request = Request::new();
    let handler = async {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let echo = monoio::spawn(inherit(async move {
            let (count, mut buffer) = server.read(vec![0; BUFFER_BYTES]).await;
            buffer.truncate(count.unwrap());
            server.write_all(buffer).await.0.unwrap();
        }));
        client.write_all(vec![OTHERS; 1_000]).await.0.unwrap();
        echo.await;
        client.read(vec![0; BUFFER_BYTES]).await.0.unwrap()
    };
    assert_eq!(request.scope(handler).await, 1_000);
    assert!(request.usage().peak_bytes > BUFFER_BYTES);
    // Dropping a socket begins an operation, too: the driver keeps a few bytes for each.
    let report = request.close().unwrap();
    assert_eq!(report.outcome, Outcome::Closed);
    assert!(report.surviving_blocks <= 2 && report.surviving_bytes < 100, "{report}");
}

/// Drops a read that the kernel has begun, and closes its request. Returns whether the kernel wrote
/// to the buffer after that.
async fn drop_read(turns: &mut Turns, is_uring: bool) -> bool {
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut ours = UnixStream::from_std(ours).unwrap();
    let request = Request::new();
    let address = request
        .scope(async {
            let buffer = vec![0u8; BUFFER_BYTES];
            let address = buffer.as_ptr();
            let mut read = pin!(ours.read(buffer));
            start(read.as_mut()).await;
            turns.turn().await;
            address
        })
        .await;
    // Whoever sees that does not `end` it.
    assert_eq!(request.usage().live_bytes >= BUFFER_BYTES, is_uring);
    let report = request.close().unwrap();
    assert_eq!(report.surviving_bytes >= BUFFER_BYTES, is_uring, "{report}");

    // Others may allocate what they like before the kernel is done.
    let other = Request::new();
    let blocks = other.run(|| vec![vec![OTHERS; BUFFER_BYTES]; 4]);
    theirs.write_all(&[KERNELS; BUFFER_BYTES]).unwrap();
    // SAFETY: with io_uring the driver has the buffer until its next turn. If the kernel writes to
    // it, then in a call of this thread.
    let is_written = is_uring && unsafe { address.read_volatile() } == KERNELS;
    assert!(blocks.iter().flatten().all(|&byte| byte == OTHERS), "the kernel wrote to a block");
    drop(blocks);
    assert_eq!(other.close().unwrap().surviving_blocks, 0);
    // The driver frees the buffer.
    turns.turn().await;
    is_written
}

/// Cancels a read and waits for it: then nothing is left, and the request may be ended.
async fn cancel_read(turns: &mut Turns) {
    let (mut ours, _theirs) = UnixStream::pair().unwrap();
    let request = Request::new();
    let handler = async {
        let canceller = Canceller::new();
        let mut read = pin!(ours.cancelable_read(vec![0u8; BUFFER_BYTES], canceller.handle()));
        start(read.as_mut()).await;
        turns.turn().await;
        let _cancelled = canceller.cancel();
        let (result, buffer) = read.await;
        assert!(result.is_err());
        assert_eq!(buffer.capacity(), BUFFER_BYTES);
    };
    request.scope(handler).await;
    assert_eq!(request.usage().live_blocks, 0);
    // SAFETY: nothing is live.
    let report = unsafe { request.end() }.unwrap();
    assert_eq!(report.freed_blocks, 0);
    assert!(report.peak_bytes > BUFFER_BYTES, "{report}");
}

fn main() {
    let builder = RuntimeBuilder::<FusionDriver>::new();
    let mut runtime = builder.build().unwrap();
    let is_uring = matches!(runtime, FusionRuntime::Uring(_));
    if !is_uring {
        println!("io_uring is not allowed here: with epoll, the kernel has no buffers");
    }
    let mut turns = runtime.block_on(async { Turns::new() });
    // What the runtime creates once, it creates now.
    runtime.block_on(async {
        for _ in 0..4 {
            monoio::spawn(async {}).await;
            turns.turn().await;
        }
    });
    stays_flat("two tasks", MANY, |_| {
        runtime.block_on(async {
            talk().await;
            turns.turn().await;
        });
    });
    let mut written_count = 0;
    stays_flat("a read that is dropped", MANY, |_| {
        written_count += usize::from(runtime.block_on(drop_read(&mut turns, is_uring)));
    });
    println!(
        "the kernel wrote to {written_count} of {MANY} buffers after their request was closed"
    );
    assert!(!is_uring || written_count > 0, "what this is about did not happen");
    stays_flat("a read that is cancelled", MANY, |_| runtime.block_on(cancel_read(&mut turns)));
    println!("ok");
}
