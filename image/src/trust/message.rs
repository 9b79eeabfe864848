//! OpenPGP signed messages (RFC 9580, section 10.3): a content and one signature over it, in one file; perhaps compressed, as GnuPG
//! does by itself, and perhaps armored.
//!
//! Nothing of a message counts before [`check_signatures`](super::signature::check_signatures) has found its signature good.

use std::io::{BufReader, Read};

use pgp::armor::{BlockType, Dearmor, DearmorOptions};
use pgp::packet::{Packet, PacketParser, Signature};

use super::certificate::one_line;

/// Largest message, and largest content of a compressed one.
pub const MAX_MESSAGE: u64 = 256 << 10;
/// How deep messages are compressed. GnuPG does it once.
const MAX_DEPTH: u32 = 2;

/// A message as it came: nothing of it is verified.
#[derive(Debug)]
pub struct SignedMessage {
    pub content: Vec<u8>,
    pub signature: Signature,
}

impl SignedMessage {
    /// Takes a message apart. An error tells why it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let is_binary = bytes.first().is_some_and(|first| first & 0x80 != 0);
        if is_binary { unpack(bytes, 0) } else { unpack(&unarmored(bytes)?, 0) }
    }
}

/// All of a reader, if that is not more than a message may be.
fn read(reader: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = reader.take(MAX_MESSAGE + 1).read_to_end(&mut bytes);
    read.map_err(|error| one_line(&error.to_string()))?;
    if bytes.len() as u64 <= MAX_MESSAGE { Ok(bytes) } else { Err(format!("it is larger than {MAX_MESSAGE} bytes")) }
}

fn unarmored(text: &[u8]) -> Result<Vec<u8>, String> {
    let options = DearmorOptions::new().set_limit(text.len() + 1);
    let mut armor = Dearmor::with_options(BufReader::new(text), options);
    armor.read_header().map_err(|error| one_line(&error.to_string()))?;
    match armor.typ {
        Some(BlockType::Message) => read(armor),
        Some(other) => Err(format!("it is a {other}")),
        None => Err("it has no header".to_owned()),
    }
}

/// A message's parts: what announces the signature, the content, the signature. Older ones have the signature first.
fn unpack(bytes: &[u8], depth: u32) -> Result<SignedMessage, String> {
    let (mut content, mut signature, mut is_announced) = (None, None, false);
    for packet in PacketParser::new(BufReader::new(bytes)) {
        match packet.map_err(|error| one_line(&error.to_string()))? {
            Packet::CompressedData(packed) if content.is_none() && signature.is_none() && !is_announced => {
                if depth == MAX_DEPTH {
                    return Err("it is compressed again and again".to_owned());
                }
                let plain = packed.decompress().map_err(|error| one_line(&error.to_string()))?;
                // What follows a compressed message is not of it.
                return unpack(&read(plain)?, depth + 1);
            }
            Packet::OnePassSignature(_) if content.is_none() && signature.is_none() && !is_announced => {
                is_announced = true;
            }
            Packet::LiteralData(data) if content.is_none() => content = Some(data.into_bytes().to_vec()),
            Packet::Signature(one) if signature.is_none() && content.is_some() == is_announced => signature = Some(one),
            Packet::Signature(_) | Packet::OnePassSignature(_) => return Err("it has several signatures".to_owned()),
            Packet::Marker(_) | Packet::Padding(_) => {}
            other => return Err(format!("it has something else in it ({})", kind(&other))),
        }
    }
    match (content, signature) {
        (Some(content), Some(signature)) => Ok(SignedMessage { content, signature }),
        (Some(_), None) => Err("nobody has signed it".to_owned()),
        (None, _) => Err("there is no content in it".to_owned()),
    }
}

fn kind(packet: &Packet) -> String {
    use pgp::packet::PacketTrait;
    one_line(&format!("{:?}", packet.tag()))
}
