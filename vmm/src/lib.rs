//! A virtual machine monitor on KVM as a library.
//!
//! It turns a configuration (memory, CPUs, kernel, devices) into a running guest. It knows nothing of
//! pods, images or networks: whoever uses it opens the files, the tap and the sockets and hands them in.
//!
//! Everything the guest can write (registers, rings, buffers) is untrusted. A guest's mistake becomes an
//! error value that stops the device or the guest, never a panic.

pub mod boot;
pub mod devices;
pub mod legacy;
pub mod machine;
pub mod memory;
pub mod persist;
pub mod probe;
pub mod sandbox;
pub mod vcpu;
pub mod virtio;
