//! The memory plan: what lives where and when.

pub mod arena;
