//! Writes tar entries for tests, true ones and lying ones.

use super::BLOCK;

/// One header, whose fields a test may set to anything.
#[derive(Debug, Clone)]
pub struct Member {
    pub name: Vec<u8>,
    pub kind: u8,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: u64,
    pub device: (u32, u32),
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    pub data: Vec<u8>,
}

impl Member {
    pub fn new(name: impl AsRef<[u8]>, kind: u8) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1,
            device: (0, 0),
            records: Vec::new(),
            data: Vec::new(),
        }
    }

    pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        let data = data.as_ref().to_vec();
        Self { size: data.len() as u64, data, ..Self::new(name, b'0') }
    }

    pub fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(name, b'5')
    }

    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(name, b'2') }
    }

    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(name, b'1') }
    }

    pub fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// The member's blocks: extension headers as far as needed, header, data.
    pub fn encode(&self) -> Vec<u8> {
        let mut records = self.records.clone();
        if self.name.len() > 100 {
            records.push((b"path".to_vec(), self.name.clone()));
        }
        if self.link.len() > 100 {
            records.push((b"linkpath".to_vec(), self.link.clone()));
        }
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let data = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
            let extension = Self { size: 0, records: Vec::new(), data, ..Self::new("pax", b'x') };
            let extension = Self { size: extension.data.len() as u64, ..extension };
            bytes.extend(extension.encode());
        }
        bytes.extend(self.header());
        bytes.extend(&self.data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn header(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut text = |at: usize, most: usize, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(most)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        text(0, 100, &self.name);
        text(157, 100, &self.link);
        text(257, 8, b"ustar\x0000");
        block[156] = self.kind;
        let mut number = |at: usize, width: usize, value: u64| {
            let digits = format!("{value:o}");
            if digits.len() < width {
                let digits = format!("{value:0width$o}\0", width = width - 1);
                block[at..at + width].copy_from_slice(digits.as_bytes());
            } else {
                block[at..at + width].fill(0);
                let bytes = value.to_be_bytes();
                let count = width.min(8);
                block[at + width - count..at + width].copy_from_slice(&bytes[8 - count..]);
                block[at] |= 0x80;
            }
        };
        number(100, 8, u64::from(self.mode));
        number(108, 8, self.uid);
        number(116, 8, self.gid);
        number(124, 12, self.size);
        number(136, 12, self.mtime);
        number(329, 8, u64::from(self.device.0));
        number(337, 8, u64::from(self.device.1));
        seal(&mut block);
        block
    }
}

/// Makes a header's checksum right.
pub fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// One pax record, whose length counts its own digits.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// An archive of these members, with its end marker.
pub fn archive<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<u8> {
    let mut bytes: Vec<u8> = members.into_iter().flat_map(Member::encode).collect();
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}
