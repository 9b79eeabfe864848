//! The host's side of pod networks: namespaces, veth, leases, port forwards.
