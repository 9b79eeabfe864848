//! What a layer becomes, seen through a reader of its own.

use std::io::{Read, Seek};

use super::reader::{self, File, Files};
use super::{Limits, build, image_digest};
use crate::tar::builder::{Member, archive};

mod holes;
mod members;
mod refusals;
mod there_and_back;
mod whiteouts;

fn try_build(tar: &[u8], limits: &Limits) -> Result<Vec<u8>, String> {
    let mut image = tempfile::tempfile().unwrap();
    let tails = tempfile::tempfile().unwrap();
    let built = build(tar, &image, &tails, limits).map_err(|error| error.to_string())?;
    assert_eq!(image_digest(&image).unwrap(), built.digest);
    let mut bytes = Vec::new();
    image.rewind().unwrap();
    image.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, built.size);
    Ok(bytes)
}

fn files_of(members: &[Member]) -> Files {
    let bytes = try_build(&archive(members), &Limits::default()).unwrap();
    reader::read(&bytes)
}

fn error_of(members: &[Member]) -> String {
    try_build(&archive(members), &Limits::default()).expect_err("the layer is refused")
}

fn get<'a>(files: &'a Files, path: &str) -> &'a File {
    files.get(path.as_bytes()).unwrap_or_else(|| panic!("{path} is missing"))
}

fn paths(files: &Files) -> Vec<String> {
    files.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

fn opaque(file: &File) -> bool {
    file.xattrs.get(&(4, b"overlay.opaque".to_vec())).map(Vec::as_slice) == Some(b"y")
}
