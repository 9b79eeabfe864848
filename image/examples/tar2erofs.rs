//! Makes an EROFS image from an uncompressed tar on standard input: `tar2erofs IMAGE < LAYER.tar`.

use std::fs::File;
use std::io;

use podvm_image::erofs::{self, Limits};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: tar2erofs IMAGE < LAYER.tar")?;
    let image = File::create(&path)?;
    let tails = tempfile::tempfile()?;
    let built = erofs::build(io::stdin().lock(), &image, &tails, &Limits::default())?;
    println!("{built:?}");
    Ok(())
}
