//! Answers that do not come to an end in any useful time.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Fewest bytes that must arrive within the time that a single read may take: about 1 KiB/s, by default.
const LEAST: u64 = 64 * 1024;

/// A body that must arrive at a certain pace: each read has its own limit, which a server keeps that sends a byte now and then.
#[derive(Debug)]
pub struct Paced<R> {
    body: R,
    limit: Duration,
    /// Spent in reads since the pace was last looked at; how long the reader takes for what it has read does not count.
    waited: Duration,
    arrived: u64,
}

impl<R: Read> Paced<R> {
    /// `limit` is how long [`LEAST`] bytes may take.
    pub fn new(body: R, limit: Duration) -> Self {
        Self { body, limit, waited: Duration::ZERO, arrived: 0 }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let start = Instant::now();
        let n = self.body.read(buffer)?;
        self.waited += start.elapsed();
        self.arrived += n as u64;
        if self.arrived >= LEAST {
            (self.waited, self.arrived) = (Duration::ZERO, 0);
        } else if self.waited > self.limit && n > 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it comes too slowly"));
        }
        Ok(n)
    }
}
