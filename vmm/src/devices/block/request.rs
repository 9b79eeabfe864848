//! A request: header, data, status (virtio 1.2, section 5.2.6).

use std::io;

use vm_memory::ByteValued;

use super::SECTOR_BYTES;
use super::disk::Disk;
use crate::virtio::chain::{Buffers, DescriptorChain};

/// Most data of one request in bytes; no driver sends as much, and it bounds how long a request can take.
const MAX_DATA_BYTES: u64 = 64 << 20;
/// Most ranges that one discard or zeroing request names.
pub(super) const MAX_RANGES: u32 = 16;
/// Most bytes of one range to be discarded, which takes no time or is not done.
pub(super) const MAX_DISCARD_BYTES: u64 = 1 << 30;
/// Most bytes of one range to be zeroed: on some filesystems they have to be written.
pub(super) const MAX_ZEROES_BYTES: u64 = MAX_DATA_BYTES / MAX_RANGES as u64;
/// Length of the disk's identity in bytes, padded with zeroes.
const ID_BYTES: usize = 20;

// Request types.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

impl From<std::io::Error> for Status {
    fn from(_: std::io::Error) -> Self {
        Self::IoError
    }
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

// SAFETY: plain numbers without padding.
unsafe impl ByteValued for Header {}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

// SAFETY: plain numbers without padding.
unsafe impl ByteValued for Range {}

/// Serves one request and writes its status; returns how many bytes were written into the guest's buffers.
pub(super) fn serve(disk: &Disk, id: &str, chain: &DescriptorChain) -> u32 {
    let mut input = chain.readable();
    let mut output = chain.writable();
    // Without a place for the status there is no way to answer but to give the chain back.
    let Some(status_byte) = output.take_back(1) else { return 0 };
    let done = match input.read_object::<Header>() {
        Some(header) => execute(disk, id, &header, input, output),
        None => Err(Status::IoError),
    };
    let (status, written) = match done {
        Ok(written) => (Status::Ok, written),
        Err(status) => (status, 0),
    };
    status_byte.copy_from(&[status as u8]);
    written + 1
}

fn execute(disk: &Disk, id: &str, header: &Header, input: Buffers<'_>, output: Buffers<'_>) -> Result<u32, Status> {
    match header.kind {
        IN => {
            let length = output.len() as u64;
            disk.read(place(disk, header.sector, length)?, output)?;
            Ok(length as u32)
        }
        OUT => {
            disk.write(place(disk, header.sector, input.len() as u64)?, input)?;
            Ok(0)
        }
        FLUSH => {
            disk.flush()?;
            Ok(0)
        }
        GET_ID => {
            let mut bytes = [0; ID_BYTES];
            let length = id.len().min(ID_BYTES);
            bytes[..length].copy_from_slice(&id.as_bytes()[..length]);
            Ok(output.copy_from(&bytes) as u32)
        }
        DISCARD | WRITE_ZEROES if disk.is_read_only() => Err(Status::IoError),
        DISCARD => each_range(disk, input, MAX_DISCARD_BYTES, |offset, length| disk.discard(offset, length)),
        WRITE_ZEROES => each_range(disk, input, MAX_ZEROES_BYTES, |offset, length| disk.zero(offset, length)),
        _ => Err(Status::Unsupported),
    }
}

/// The byte offset of a request's data, once it is certain that the data lies on the disk.
fn place(disk: &Disk, sector: u64, length: u64) -> Result<u64, Status> {
    if length > MAX_DATA_BYTES {
        return Err(Status::IoError);
    }
    range_within(disk, sector, length).ok_or(Status::IoError)
}

fn range_within(disk: &Disk, sector: u64, length: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_BYTES)?;
    let end = offset.checked_add(length)?;
    (end <= disk.size() && length.is_multiple_of(SECTOR_BYTES)).then_some(offset)
}

fn each_range(
    disk: &Disk,
    mut input: Buffers<'_>,
    most: u64,
    treat: impl Fn(u64, u64) -> io::Result<()>,
) -> Result<u32, Status> {
    let count = input.len() / size_of::<Range>();
    if count > MAX_RANGES as usize || !input.len().is_multiple_of(size_of::<Range>()) {
        return Err(Status::Unsupported);
    }
    for _ in 0..count {
        let range = input.read_object::<Range>().ok_or(Status::IoError)?;
        let length = u64::from(range.sectors) * SECTOR_BYTES;
        if length > most {
            return Err(Status::IoError);
        }
        let offset = range_within(disk, range.sector, length).ok_or(Status::IoError)?;
        if length > 0 {
            treat(offset, length)?;
        }
    }
    Ok(0)
}
