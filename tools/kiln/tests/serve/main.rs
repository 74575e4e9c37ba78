//! `kiln serve`: its interfaces, with the clients that people have; its page, in a browser; its
//! limits, under load.

#[path = "../harness/mod.rs"]
mod harness;

mod api;
mod browser;
mod clients;
mod load;
mod page;
mod safety;
mod server;
