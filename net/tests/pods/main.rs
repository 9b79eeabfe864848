//! Pod networks end to end, natively: real namespaces, links, packets and rules. Needs root; uses ip(8) and nft(8) to look.

mod crash;
mod create;
mod forward;
mod guard;
mod lab;
mod tap;
