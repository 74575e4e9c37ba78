//! Kernel templates.
