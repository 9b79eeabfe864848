//! Sparse files: GNU tar's old format and its pax formats 0.0, 0.1 and 1.0 (GNU tar manual, "Sparse Formats").

use super::header::parse_number;
use super::pax::{PaxSparse, parse_decimal};
use super::{BLOCK, MAX_SPARSE_SEGMENTS};

/// A run of data in a sparse file; all between runs is zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file it begins.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Gathers a sparse map from any of the formats and checks it as a whole.
#[derive(Debug, Default)]
pub struct SparseMap {
    segments: Vec<Segment>,
}

impl SparseMap {
    /// Adds one run. Runs must not overlap nor go backwards.
    pub fn push(&mut self, offset: u64, length: u64) -> Result<(), &'static str> {
        let end = offset.checked_add(length).ok_or("the sparse map goes beyond 2^64")?;
        let last = self.segments.last().map_or(0, |s| s.offset + s.length);
        if offset < last {
            return Err("the sparse map goes backwards");
        }
        if self.segments.len() >= MAX_SPARSE_SEGMENTS {
            return Err("the sparse map has too many segments");
        }
        // A run of no bytes only marks the end of the file; it is kept so that order is still checked.
        self.segments.push(Segment { offset, length: end - offset });
        Ok(())
    }

    /// Adds the pairs of an old GNU header or extension block. Returns false when the list has ended.
    pub fn push_old(&mut self, pairs: &[u8]) -> Result<bool, &'static str> {
        for pair in pairs.chunks_exact(24) {
            if pair[0] == 0 {
                return Ok(false);
            }
            let value = |field| parse_number(field).and_then(|n| u64::try_from(n).ok());
            let offset = value(&pair[..12]).ok_or("a sparse offset is not a number")?;
            let length = value(&pair[12..]).ok_or("a sparse length is not a number")?;
            self.push(offset, length)?;
        }
        Ok(true)
    }

    /// Adds what pax formats 0.0 and 0.1 keep in the header.
    pub fn push_pax(&mut self, pax: &PaxSparse) -> Result<(), &'static str> {
        let numbers = match &pax.map {
            Some(map) if map.is_empty() => Vec::new(),
            Some(map) => map
                .split(|&b| b == b',')
                .map(|n| parse_decimal(n).ok_or("the sparse map holds something else than numbers"))
                .collect::<Result<_, _>>()?,
            None => pax.numbers.clone(),
        };
        if numbers.len() % 2 != 0 {
            return Err("the sparse map has an offset without a length");
        }
        numbers.chunks_exact(2).try_for_each(|pair| self.push(pair[0], pair[1]))
    }

    /// The runs, when they lie within `size` and hold exactly the `stored` bytes of the archive.
    pub fn finish(mut self, size: u64, stored: u64) -> Result<Vec<Segment>, &'static str> {
        if self.segments.last().is_some_and(|s| s.offset + s.length > size) {
            return Err("the sparse map goes beyond the file's size");
        }
        if self.segments.iter().map(|s| s.length).sum::<u64>() != stored {
            return Err("the sparse map and the stored data differ in size");
        }
        self.segments.retain(|s| s.length > 0);
        Ok(self.segments)
    }
}

/// Reads format 1.0's map, which stands before the data: decimal lines, padded to a block.
///
/// `next_block` yields the data's blocks.
pub fn read_map_1_0<E: From<&'static str>>(
    mut next_block: impl FnMut(&mut [u8; BLOCK]) -> Result<(), E>,
) -> Result<SparseMap, E> {
    let mut block = [0; BLOCK];
    let mut at = BLOCK;
    let mut next_number = || -> Result<u64, E> {
        let mut digits = Vec::with_capacity(20);
        loop {
            if at == BLOCK {
                next_block(&mut block)?;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            if byte == b'\n' {
                return parse_decimal(&digits).ok_or_else(|| "the sparse map holds a bad number".into());
            }
            if digits.len() == 20 {
                return Err("the sparse map holds a bad number".into());
            }
            digits.push(byte);
        }
    };
    let count = next_number()?;
    if count > MAX_SPARSE_SEGMENTS as u64 {
        return Err("the sparse map has too many segments".into());
    }
    let mut map = SparseMap::default();
    for _ in 0..count {
        let (offset, length) = (next_number()?, next_number()?);
        map.push(offset, length)?;
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pax_map(map: &[u8]) -> Result<Vec<Segment>, &'static str> {
        let mut sparse = SparseMap::default();
        sparse.push_pax(&PaxSparse { map: Some(map.to_vec()), ..PaxSparse::default() })?;
        sparse.finish(100, 15)
    }

    #[test]
    fn a_map_is_taken_when_it_fits_file_and_data() {
        let expected = vec![Segment { offset: 0, length: 10 }, Segment { offset: 50, length: 5 }];
        assert_eq!(pax_map(b"0,10,50,5,100,0"), Ok(expected));
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for bad in
            [&b"0,10,5,5"[..], b"0,10,50", b"0,10,98,5", b"0,10", b"0,x", b"18446744073709551615,15", b"50,5,0,10"]
        {
            assert!(pax_map(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn an_endless_number_or_count_is_refused() {
        let read = |text: &'static [u8]| {
            read_map_1_0::<&'static str>(|block| {
                block.fill(b'1');
                block[..text.len()].copy_from_slice(text);
                Ok(())
            })
        };
        assert!(read(b"").is_err());
        assert!(read(b"99999999\n").is_err());
        assert!(read(b"1\n0\n\n").is_err());
        assert_eq!(read(b"1\n7\n3\n").unwrap().segments, [Segment { offset: 7, length: 3 }]);
    }
}
