//! The full flavour's disk.

use std::path::PathBuf;

use crate::LabError;
use crate::cache::Cache;
use crate::kernel::Kernel;

pub fn image(_cache: &Cache, _kernel: &Kernel) -> Result<PathBuf, LabError> {
    Err(LabError::NoKernelPackage { looked_for: "full".into() })
}
