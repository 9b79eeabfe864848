//! What only namespaces have.

mod users;
mod walls;
