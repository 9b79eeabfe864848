//! A virtual machine monitor on KVM as a library.
