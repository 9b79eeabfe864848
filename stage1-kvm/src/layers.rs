//! How the layers of a pod's images come into its VM: mapped into its memory, or as a disk.
//!
//! Either way the blobs of all apps are partitions of one device ([`crate::gpt`]). Mapped (virtio-pmem), what the guest reads
//! is the host's page cache itself, and pods of one image share it. The guest's kernel pays with a page structure for each
//! page of the layers, read or not: one byte in 64, and the time to write them. So layers are mapped while they are not larger than
//! the pod's memory, of which the structures then take at most a 64th part. `cargo xtask memory-bench` measures both ways.

use std::fs::File;
use std::io;
use std::path::Path;

use podvm_pod::protocol::LayerSource;
use podvm_vmm::devices::block::{Block, Disk, Extent};
use podvm_vmm::devices::pmem::ReadOnlyFiles;
use podvm_vmm::machine::VmConfig;
use serde::{Deserialize, Serialize};

use crate::gpt;
use crate::machine::MachineError;

/// How the user wants layers to come into VMs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerAccess {
    /// Mapped, unless they are larger than the pod's memory.
    #[default]
    Auto,
    /// Mapped: least memory for many pods of one image.
    Memory,
    /// As a disk: for kernels without virtio-pmem, and for pods that are to share no physical page.
    Disk,
}

/// The way that was taken for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Mapped.
    Memory,
    /// A disk.
    Disk,
}

impl Way {
    /// The way for layers of so many bytes in a pod with so much memory.
    fn of(access: LayerAccess, layers_bytes: u64, memory_bytes: u64) -> Self {
        match access {
            LayerAccess::Memory => Self::Memory,
            LayerAccess::Auto if layers_bytes <= memory_bytes => Self::Memory,
            LayerAccess::Auto | LayerAccess::Disk => Self::Disk,
        }
    }

    /// The layer with this number, from 1, as the guest names it.
    pub fn layer(self, number: usize) -> LayerSource {
        match self {
            Self::Memory => LayerSource::Pmem(format!("/dev/pmem0p{number}").into()),
            Self::Disk => LayerSource::Erofs(format!("/dev/vda{number}").into()),
        }
    }

    /// The first disk that is not the layers', as the guest names it.
    pub fn next_disk(self) -> &'static Path {
        match self {
            Self::Memory => Path::new("/dev/vda"),
            Self::Disk => Path::new("/dev/vdb"),
        }
    }
}

/// Adds the device of these blobs, before any other disk.
///
/// # Errors
/// [`MachineError`], which names a blob that cannot be used.
pub fn add(config: &mut VmConfig, blobs: &[&Path], access: LayerAccess) -> Result<Way, MachineError> {
    let (files, sizes) = open(blobs)?;
    let pieces = pieces(files, &sizes)?;
    if Way::of(access, sizes.iter().sum(), config.memory_bytes) == Way::Memory {
        match ReadOnlyFiles::map(config.free_address(), &pieces) {
            Ok(files) => {
                config.add_pmem(files)?;
                return Ok(Way::Memory);
            }
            Err(error) if access == LayerAccess::Memory => return Err(MachineError::Map(error)),
            // Some filesystems cannot have their files mapped; all can have them read.
            Err(_) => {}
        }
    }
    config.add_device(Block::new(Disk::read_only(pieces)?, "layers"))?;
    Ok(Way::Disk)
}

fn open(blobs: &[&Path]) -> Result<(Vec<File>, Vec<u64>), MachineError> {
    if blobs.len() > gpt::MAX_PARTITIONS {
        return Err(MachineError::TooManyLayers(blobs.len()));
    }
    let open = |path: &&Path| {
        let layer = |source: io::Error| MachineError::Layer { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(layer)?;
        let size = file.metadata().map_err(layer)?.len();
        Ok((file, size))
    };
    blobs.iter().map(open).collect()
}

fn pieces(files: Vec<File>, sizes: &[u64]) -> Result<Vec<Extent>, MachineError> {
    let table = gpt::lay_out(sizes);
    let mut pieces = vec![Extent::bytes(0, table.head)];
    for (file, offset) in files.into_iter().zip(table.offsets) {
        pieces.push(Extent::file(offset, file)?);
    }
    pieces.push(Extent::bytes(table.tail_offset, table.tail));
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_layer_is_named_with_the_cure() {
        let error = open(&[Path::new("/no/such.erofs")]).unwrap_err().to_string();
        assert!(error.contains("/no/such.erofs") && error.contains("import the image again"), "{error}");
    }

    #[test]
    fn layers_are_mapped_until_they_are_larger_than_the_pods_memory() {
        assert_eq!(Way::of(LayerAccess::Auto, 1 << 20, 1 << 20), Way::Memory);
        assert_eq!(Way::of(LayerAccess::Auto, (1 << 20) + 1, 1 << 20), Way::Disk);
        assert_eq!(Way::of(LayerAccess::Memory, 2, 1), Way::Memory);
        assert_eq!(Way::of(LayerAccess::Disk, 1, 2), Way::Disk);
    }

    #[test]
    fn layers_can_be_mapped_and_read_as_a_disk_alike() {
        let blob = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(blob.path(), vec![7; 5000]).unwrap();
        let (files, sizes) = open(&[blob.path(), blob.path()]).unwrap();
        let pieces = pieces(files, &sizes).unwrap();
        let files = ReadOnlyFiles::map(vm_memory::GuestAddress(4 << 30), &pieces).unwrap();
        // The backup of the partition table ends both.
        assert_eq!(files.end().0 - (4 << 30), Disk::read_only(pieces).unwrap().size());
    }
}
