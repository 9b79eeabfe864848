//! The supervisor: starts and watches a pod's apps inside its walls.

fn main() {}
