//! `cargo xtask images`: the images that tests and the demo run, as OCI layouts under `target/test-images/`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::Context;
use podvm_lab::agent::workspace;
use podvm_lab::cache::Cache;
use podvm_lab::images;

/// Makes every image of the catalogue. What the cache holds is only linked to.
pub fn make_all() -> anyhow::Result<()> {
    for name in images::NAMES {
        make(name)?;
    }
    Ok(())
}

/// Makes one image and returns its layout directory.
pub fn make(name: &str) -> anyhow::Result<PathBuf> {
    let layout = images::debian(&Cache::open()?, &images::described(name)?)?;
    let link = workspace().join("target/test-images").join(name);
    let link_up = || -> std::io::Result<()> {
        if fs::read_link(&link).is_ok_and(|present| present == layout) {
            return Ok(());
        }
        fs::create_dir_all(link.parent().unwrap_or(&link))?;
        let new = link.with_added_extension(format!("new-{}", std::process::id()));
        symlink(&layout, &new)?;
        fs::rename(&new, &link)
    };
    link_up().with_context(|| format!("cannot link {} to {}", link.display(), layout.display()))?;
    Ok(link)
}
