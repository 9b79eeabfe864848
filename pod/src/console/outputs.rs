//! The output streams of a pod's processes, each carried by a thread of its own until it ends.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::streams::drain;

/// Stack of a thread that only copies.
const STACK_BYTES: usize = 256 * 1024;

/// Starts a thread that only copies or waits.
///
/// # Errors
/// Those of pthread_create(3).
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // The kernel keeps 15 bytes of a name; a longer one is cut by it.
    thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(work).map(drop)
}

enum News {
    Ended,
    Interrupted,
}

/// Output streams that are being carried.
#[derive(Debug)]
pub struct Outputs {
    open: usize,
    sender: Sender<News>,
    news: Receiver<News>,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    pieces: AtomicU64,
    being_written: AtomicUsize,
}

impl Default for Outputs {
    fn default() -> Self {
        let (sender, news) = channel();
        Self { open: 0, sender, news, progress: Arc::default() }
    }
}

impl Outputs {
    /// Carries one stream: a thread opens it and hands each piece of it to `sink` until it ends. Why it could not be
    /// opened or read is handed to `trouble`.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn carry<E: std::error::Error + From<io::Error>>(
        &mut self,
        name: &str,
        open: impl FnOnce() -> Result<UnixStream, E> + Send + 'static,
        mut sink: impl FnMut(&[u8]) + Send + 'static,
        trouble: impl FnOnce(E) + Send + 'static,
    ) -> io::Result<()> {
        let (sender, progress) = (self.sender.clone(), self.progress.clone());
        spawn(name, move || {
            let result = open().and_then(|stream| {
                let carried = drain(&stream, |piece| {
                    progress.being_written.fetch_add(1, Ordering::Relaxed);
                    sink(piece);
                    progress.being_written.fetch_sub(1, Ordering::Relaxed);
                    progress.pieces.fetch_add(1, Ordering::Relaxed);
                });
                // A terminal's other direction is fed by another thread, which learns of the end by this.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                carried.map_err(E::from)
            });
            drop(sink);
            if let Err(error) = result {
                trouble(error);
            }
            let _ = sender.send(News::Ended);
        })?;
        self.open += 1;
        Ok(())
    }

    /// How many streams have not ended.
    pub fn under_way(&mut self) -> usize {
        while let Ok(news) = self.news.try_recv() {
            if matches!(news, News::Ended) {
                self.open -= 1;
            }
        }
        self.open
    }

    /// What makes [`Self::wait`] return at once, from another thread.
    pub fn interrupter(&self) -> impl Fn() + Send + 'static {
        let sender = self.sender.clone();
        move || drop(sender.send(News::Interrupted))
    }

    /// Waits until all streams have ended, or none has moved for `idle` (a stream that someone else holds open does not
    /// end), or `at_most` has passed. Who is slow to take what a stream brings is waited for. Returns whether all have ended.
    pub fn wait(&mut self, idle: Duration, at_most: Option<Duration>) -> bool {
        let latest = at_most.map(|at_most| Instant::now() + at_most);
        let mut seen = self.progress.pieces.load(Ordering::Relaxed);
        while self.open > 0 {
            let left = latest.map_or(idle, |latest| latest.saturating_duration_since(Instant::now()));
            match self.news.recv_timeout(idle.min(left)) {
                Ok(News::Ended) => self.open -= 1,
                Ok(News::Interrupted) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {
                    let now = self.progress.pieces.load(Ordering::Relaxed);
                    let idle = now == seen && self.progress.being_written.load(Ordering::Relaxed) == 0;
                    if idle || left <= Duration::ZERO {
                        return false;
                    }
                    seen = now;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn waiting_ends_when_every_stream_has() {
        let mut outputs = Outputs::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for text in ["one", "two"] {
            let (here, mut there) = UnixStream::pair().unwrap();
            let seen = seen.clone();
            let sink = move |piece: &[u8]| seen.lock().unwrap().push(piece.to_vec());
            outputs.carry::<io::Error>("test", move || Ok(here), sink, |error| panic!("{error}")).unwrap();
            there.write_all(text.as_bytes()).unwrap();
        }
        assert!(outputs.wait(Duration::from_secs(10), None));
        let mut seen = seen.lock().unwrap().clone();
        seen.sort();
        assert_eq!(seen, [b"one".to_vec(), b"two".to_vec()]);
    }

    #[test]
    fn a_stream_that_someone_holds_open_is_not_waited_for_without_end() {
        let mut outputs = Outputs::default();
        let (here, _there) = UnixStream::pair().unwrap();
        outputs.carry::<io::Error>("test", move || Ok(here), |_| {}, |error| panic!("{error}")).unwrap();
        assert!(!outputs.wait(Duration::from_millis(50), None));
    }

    #[test]
    fn who_takes_output_slowly_gets_it_all() {
        let mut outputs = Outputs::default();
        let (here, mut there) = UnixStream::pair().unwrap();
        let taken = Arc::new(AtomicUsize::new(0));
        let sum = taken.clone();
        let sink = move |piece: &[u8]| {
            thread::sleep(Duration::from_millis(200));
            sum.fetch_add(piece.len(), Ordering::Relaxed);
        };
        outputs.carry::<io::Error>("test", move || Ok(here), sink, |_| {}).unwrap();
        thread::spawn(move || there.write_all(&[0; 100_000]));
        assert!(outputs.wait(Duration::from_millis(50), None));
        assert_eq!(taken.load(Ordering::Relaxed), 100_000);
    }

    #[test]
    fn a_stream_that_never_rests_ends_with_the_time_limit() {
        let mut outputs = Outputs::default();
        let (here, mut there) = UnixStream::pair().unwrap();
        outputs.carry::<io::Error>("test", move || Ok(here), |_| {}, |_| {}).unwrap();
        let end = there.try_clone().unwrap();
        thread::spawn(move || while there.write_all(b"more").is_ok() {});
        assert!(!outputs.wait(Duration::from_millis(20), Some(Duration::from_millis(200))));
        end.shutdown(std::net::Shutdown::Both).unwrap();
    }
}
