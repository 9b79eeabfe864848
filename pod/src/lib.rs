//! The pod model: manifest, pod directory and life cycle, stage1 interface, supervisor protocol.
