//! Nodes that find each other: by names of a nameserver, or by a key in a store. Nameserver and
//! stores are stand-ins for systems of others, as faithful as the nodes' questions go.

#![allow(clippy::unwrap_used)]

mod dns;
mod keys;
mod nameserver;
mod stores;
mod web;
