//! The kvm stage1: a pod turned into a micro-VM.
