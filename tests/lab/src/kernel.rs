//! L1's kernel: the distribution's own, unpacked from its package (nothing is installed), and its modules.
//!
//! The package's bzImage is unpacked to the ELF kernel inside: under emulation the decompressor alone would
//! take longer than the rest of the boot.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::Cache;
use crate::{LabError, apt, program};

/// The distributions' names for their newest kernel with all modules: Debian's, then Ubuntu's.
const META_PACKAGES: [&str; 2] = ["linux-image-amd64", "linux-image-generic"];
/// Counted up when this file unpacks differently.
const RECIPE: &str = "2";

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// The ELF image.
    pub image: PathBuf,
    /// The directory with `modules.dep` and all modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// The cached kernel; downloaded and unpacked if there is none.
    pub fn obtain(cache: &Cache) -> Result<Self, LabError> {
        let place = cache.entry("kernel", &[RECIPE], |place| {
            eprintln!("lab: downloading a kernel with all modules (once)");
            unpack_package(place)
        })?;
        let all = place.join("lib/modules");
        let release = fs::read_dir(&all)
            .ok()
            .and_then(|entries| entries.flatten().next())
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let release = release.ok_or_else(|| bad(&all, "holds no modules"))?;
        Ok(Self { image: place.join("vmlinux"), modules: all.join(&release), release })
    }

    /// The files of the named modules and of all they depend on, each after what it depends on. Names of
    /// modules that are built in are passed over.
    pub fn with_dependencies(&self, names: &[&str]) -> Result<Vec<PathBuf>, LabError> {
        let read = |name: &str| {
            let path = self.modules.join(name);
            fs::read_to_string(&path).map_err(LabError::io(format!("read {}", path.display())))
        };
        let (dependencies, built_in) = (read("modules.dep")?, read("modules.builtin")?);
        let order = order_modules(&dependencies, &built_in, names)
            .map_err(|name| bad(&self.modules, &format!("has no module {name}, which the lab needs")))?;
        Ok(order.into_iter().map(|file| self.modules.join(file)).collect())
    }
}

fn bad(path: &Path, reason: &str) -> LabError {
    LabError::BadKernel { path: path.to_owned(), reason: reason.to_owned() }
}

/// A module's name, which a file may spell with `-` for `_`.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

/// Files in the order of loading, or the name that is in neither list.
fn order_modules<'a>(dependencies: &'a str, built_in: &str, names: &[&str]) -> Result<Vec<&'a str>, String> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let files: HashMap<String, (&str, &str)> = lines.map(|(file, needs)| (module_name(file), (file, needs))).collect();
    let built_in: HashSet<String> = built_in.lines().map(module_name).collect();
    let (mut order, mut seen) = (Vec::new(), HashSet::new());
    for name in names {
        let name = module_name(name);
        match files.get(&name) {
            // modules.dep lists what a module needs with the deepest last.
            Some((file, needs)) => {
                let all = needs.split_whitespace().rev().chain([*file]);
                order.extend(all.filter(|file| seen.insert(*file)));
            }
            None if built_in.contains(&name) => {}
            None => return Err(name),
        }
    }
    Ok(order)
}

fn unpack_package(place: &Path) -> Result<(), LabError> {
    let mut packages = find_packages()?;
    if packages.is_empty() && apt::update().is_ok() {
        packages = find_packages()?;
    }
    if packages.is_empty() {
        return Err(LabError::NoKernelPackage { looked_for: META_PACKAGES.join(", ") });
    }
    apt::download(&packages, place)?;
    apt::unpack_all(place, place)?;
    let boot = place.join("boot");
    let image = fs::read_dir(&boot)
        .map_err(LabError::io(format!("list {}", boot.display())))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")));
    let image = image.ok_or_else(|| bad(&boot, "holds no vmlinuz"))?;
    let release = image.file_name().unwrap_or_default().to_string_lossy().replace("vmlinuz-", "");
    decompress_modules(&place.join("lib/modules").join(&release))?;
    program::output(Command::new("depmod").arg("-b").arg(place).arg(&release))?;
    extract_elf(&image, &place.join("vmlinux"))?;
    for unneeded in ["boot", "usr"] {
        // Documentation and the compressed image; a package may lack them.
        let _ = fs::remove_dir_all(place.join(unneeded));
    }
    Ok(())
}

/// The newest kernel's packages: the image, and where they are split off, its modules.
fn find_packages() -> Result<Vec<String>, LabError> {
    let Some(meta) = META_PACKAGES.into_iter().find(|name| apt::exists(name).unwrap_or(false)) else {
        return Ok(Vec::new());
    };
    let (mut packages, mut open) = (Vec::new(), vec![meta.to_owned()]);
    while let Some(package) = open.pop() {
        for name in apt::depends(&package)? {
            let is_kernel = name.starts_with("linux-image-") || name.starts_with("linux-modules-");
            if is_kernel && !packages.contains(&name) {
                packages.push(name.clone());
                open.push(name);
            }
        }
    }
    Ok(packages)
}

/// Ubuntu's modules are compressed files; the initramfs wants them plain.
fn decompress_modules(modules: &Path) -> Result<(), LabError> {
    for (suffix, tool) in [("zst", &["zstd", "-q", "-d", "--rm"][..]), ("xz", &["xz", "-d"])] {
        let mut find = Command::new("find");
        find.arg(modules).args(["-name", &format!("*.ko.{suffix}"), "-exec"]);
        program::output(find.args(tool).args(["{}", "+"]))?;
    }
    Ok(())
}

/// Writes the ELF kernel inside a bzImage (Documentation/arch/x86/boot.rst: `payload_offset`, `payload_length`).
fn extract_elf(image: &Path, to: &Path) -> Result<(), LabError> {
    let bytes = fs::read(image).map_err(LabError::io(format!("read {}", image.display())))?;
    let payload = payload(&bytes).ok_or_else(|| bad(image, "is not a bzImage of boot protocol 2.08 or later"))?;
    let decompressor = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ["xz", "-dc"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ["zstd", "-dc"],
        [0x1f, 0x8b, ..] => ["gzip", "-dc"],
        [0x02, 0x21, 0x4c, 0x18, ..] => ["lz4", "-dc"],
        _ => return Err(bad(image, "is compressed by a method the lab does not know")),
    };
    let run = || -> std::io::Result<bool> {
        let out = fs::File::create(to)?;
        let mut command = Command::new(decompressor[0]);
        let mut child = command.arg(decompressor[1]).stdin(Stdio::piped()).stdout(out).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(payload)?;
        }
        Ok(child.wait()?.success())
    };
    let done = run().map_err(LabError::io(format!("unpack {} by {}", image.display(), decompressor[0])))?;
    if done { Ok(()) } else { Err(bad(image, "its payload does not unpack")) }
}

/// The compressed kernel, without the four bytes of its unpacked size that follow it.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at =
        |at: usize| image.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap_or_default()));
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = usize::from(*image.get(0x1f1)?).max(4);
    let start = (setup_sectors + 1) * 512 + u32_at(0x248)? as usize;
    let length = (u32_at(0x24c)? as usize).checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a-top.ko: kernel/b_mid.ko kernel/c.ko\nkernel/b_mid.ko: kernel/c.ko\nkernel/c.ko:\n";

    #[test]
    fn a_module_comes_after_what_it_needs_and_only_once() {
        let order = order_modules(DEP, "", &["b-mid", "a_top"]).unwrap();
        assert_eq!(order, ["kernel/c.ko", "kernel/b_mid.ko", "kernel/a-top.ko"]);
    }

    #[test]
    fn built_in_modules_need_no_file_and_unknown_ones_are_named() {
        assert!(order_modules(DEP, "kernel/fs/ext4.ko", &["ext4"]).unwrap().is_empty());
        assert_eq!(order_modules(DEP, "", &["kvm-amd"]).unwrap_err(), "kvm_amd");
    }

    #[test]
    fn a_file_that_is_no_bzimage_has_no_payload() {
        assert_eq!(payload(&[0; 4096]), None);
        let mut image = vec![0; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None);
    }
}
