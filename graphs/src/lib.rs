//! Architectures as graph builders.
