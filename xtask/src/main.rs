//! The project's own commands: demo, test, lab, build.

fn main() {}
