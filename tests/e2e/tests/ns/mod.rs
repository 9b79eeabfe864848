//! What only namespaces have.

mod walls;
